"""The run's pipeline on the workers of a Ray cluster."""
