"""Searches for faults: random programs, mutants, fuzzing, bad weather."""
