"""How far maps move when a setting moves."""
