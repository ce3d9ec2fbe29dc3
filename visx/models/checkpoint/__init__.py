"""Checkpoints: reading state dicts without executing anything, loading them into modules, and their digests."""

from visx.models.checkpoint.digest import digest_file, digest_state
from visx.models.checkpoint.fit import classes_in, fit, rows_in, shapes_that_differ
from visx.models.checkpoint.read import read

__all__ = ["classes_in", "digest_file", "digest_state", "fit", "read", "rows_in", "shapes_that_differ"]
