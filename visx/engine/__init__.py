"""A job on a batch of images: what it needs, the passes it makes, the answers it gives."""
