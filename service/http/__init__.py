"""Bodies of requests: JSON, multipart, and checks of single values."""
