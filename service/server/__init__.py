"""The HTTP server: uvicorn, with bounds on what a client may send before it is authenticated, and how slowly."""
