"""Weight Norm, under the name that it had before :mod:`fastnorm.norms`."""

from .norms.weight import *
from .norms.weight import __all__ as __all__
