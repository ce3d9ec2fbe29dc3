"""Images: finding them, decoding them the way a person sees them, and the geometry between picture and network."""
