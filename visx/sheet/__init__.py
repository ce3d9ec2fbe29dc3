"""Contact sheets: a picture and its maps side by side, for a paper or a pull request."""

from visx.sheet.layout import MAX_COLUMNS, THEMES, Bar, Cell, layout
from visx.sheet.paint import check_suffix, encode

__all__ = ["MAX_COLUMNS", "THEMES", "Bar", "Cell", "check_suffix", "encode", "layout"]
