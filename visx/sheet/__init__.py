"""Contact sheets: a picture and its maps side by side on one page, for a paper or a pull request."""

from visx.sheet.layout import MAX_COLUMNS, THEMES, Cell, ColourBar, layout
from visx.sheet.paint import check_suffix, encode

__all__ = ["MAX_COLUMNS", "THEMES", "Cell", "ColourBar", "check_suffix", "encode", "layout"]
