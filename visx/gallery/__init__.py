"""The gallery: one HTML page of a run, to browse, filter, sort and compare. It needs no server and no network."""

from visx.gallery.page import write_report

__all__ = ["write_report"]
