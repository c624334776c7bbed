"""The Python interface: load, fit, generate, compare, apply."""
