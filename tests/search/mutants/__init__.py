"""Faults put into the library on purpose, one at a time, to see that something finds each."""
