"""Normalizers for NumPy on the CPU, forward and backward, at the speed of memory.

Functions (`batch_norm`, `layer_norm`, ...) and their one `backward`; layers (`BatchNorm`, ...) with
parameters, running statistics and torch's state names; control of threads and instruction sets.
"""

from . import _wait_policy  # noqa: F401  isort: skip  (first: it loads the core)
from . import activations, comm, norms, outofcore
from ._core import Context, __version__
from ._settings import (
    available_isas,
    get_isa,
    get_num_threads,
    set_buffer_cache,
    set_isa,
    set_num_threads,
    show_choices,
    show_config,
)
from ._types import (
    DerivedContext,
    FilterResponseGradients,
    FusedGradients,
    Gradients,
    SwitchableGradients,
    WeightGradients,
)
from .around import Around
from .blocked import from_blocked, to_blocked
from .deploy import Folded, FoldedBefore, fold_batch_norm, fold_batch_norm_before
from .guide import Recommendation, recommend
from .moments import Moments
from .norms import *
from .sync import SyncBatchNorm, sync_batch_norm

__all__ = [
    "Around",
    "Context",
    "DerivedContext",
    "FilterResponseGradients",
    "Folded",
    "FoldedBefore",
    "FusedGradients",
    "Gradients",
    "Moments",
    "Recommendation",
    "SwitchableGradients",
    "SyncBatchNorm",
    "WeightGradients",
    "__version__",
    "activations",
    "available_isas",
    "comm",
    "fold_batch_norm",
    "fold_batch_norm_before",
    "from_blocked",
    "get_isa",
    "get_num_threads",
    "outofcore",
    "recommend",
    "set_buffer_cache",
    "set_isa",
    "set_num_threads",
    "show_choices",
    "show_config",
    "sync_batch_norm",
    "to_blocked",
]
__all__ += norms.__all__
