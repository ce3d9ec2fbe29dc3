"""What exists for speed alone: faster ways to the same answers."""
