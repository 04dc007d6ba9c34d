"""Moments as a value: how statistics of several arrays, processes or blocks of a file merge."""

from .statistics.moments import Moments

__all__ = ["Moments"]
