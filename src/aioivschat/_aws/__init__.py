"""The way to AWS: clients, and the requests that they send."""
