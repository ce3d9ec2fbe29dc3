"""Maps, tables and curves as pictures."""
