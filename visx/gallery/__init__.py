"""The gallery: one HTML page of a run, to look through, filter, sort and compare. Needs no server and no network."""

from visx.gallery.page import write_report

__all__ = ["write_report"]
