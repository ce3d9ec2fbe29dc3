"""Images: finding files, decoding them, and the geometry between a picture and the network's input."""
