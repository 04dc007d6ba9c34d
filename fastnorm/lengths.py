"""Vectors divided by their length, under the name that it had before :mod:`fastnorm.norms`."""

from .norms.length import *
from .norms.length import __all__ as __all__
