"""The normalizers as layers: parameters, running statistics, train and eval, gradients.

State names and shapes are torch's: a checkpoint loads as it is; so do those of others, whose names
are known. Arguments are checked when a layer is made.
A layer keeps the context of its last call for `backward`, and with it that call's input.
"""

from .norms import *
from .norms import __all__ as __all__
