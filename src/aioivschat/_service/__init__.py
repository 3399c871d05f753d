"""How a token is issued, on one machine and in a fleet: from the call to the cache."""
