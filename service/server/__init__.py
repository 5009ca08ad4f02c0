"""The HTTP server: uvicorn, with limits on what an unauthenticated client may send, and how slowly."""
