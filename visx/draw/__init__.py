"""Drawing: maps over pictures, colours, curves, PNG files and pictures in a terminal."""
