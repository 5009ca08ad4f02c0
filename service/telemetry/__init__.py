"""What Hatrack says of itself: logs, and later metrics and traces."""
