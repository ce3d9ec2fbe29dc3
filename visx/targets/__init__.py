"""What is explained of an image."""
