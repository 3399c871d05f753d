"""What comes from outside, made up: properties that hold for any input."""
