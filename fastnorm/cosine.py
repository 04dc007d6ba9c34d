"""Cosine Norm, under the name that it had before :mod:`fastnorm.norms`."""

from .norms.cosine import *
from .norms.cosine import __all__ as __all__
