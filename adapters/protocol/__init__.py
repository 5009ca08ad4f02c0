"""The messages between gateway and trainer, declared once for both."""
