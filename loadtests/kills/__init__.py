"""kill -9 at random moments of everything that a gateway and its children write."""
