"""A network seen from outside: what keeps it as it was, and what its outputs are."""
