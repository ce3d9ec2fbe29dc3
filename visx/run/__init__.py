"""A run: images through the pipeline, on threads of this process or on Ray's workers."""
