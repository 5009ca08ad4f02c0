"""The console: a web page at `/console` that is a client of the public API alone."""
