"""What Hatrack says of itself: metrics, logs and traces."""
