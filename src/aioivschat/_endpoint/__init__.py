"""The token endpoint, whatever the framework."""
