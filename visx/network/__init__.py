"""A network seen from outside: what its outputs mean, how it is run, and in which form it comes."""
