"""What the gateway and the trainer say to each other, declared once for both."""
