"""A disk that is full at each write of the gateway: a refused request changes nothing, an accepted one is there."""
