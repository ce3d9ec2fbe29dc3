"""Maps measured with metrics, and the tables of the values."""
