"""Code that several metrics use."""
