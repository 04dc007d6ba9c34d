"""Normalizers for NumPy on the CPU, forward and backward, at the speed of memory.

Functions (`batch_norm`, `layer_norm`, ...) and their one `backward`; layers (`BatchNorm`, ...) with
parameters, running statistics and torch's state names; control of threads and instruction sets.
"""

from . import _wait_policy  # noqa: F401  isort: skip  (first: it loads the core)
from . import comm, outofcore
from ._core import Context, __version__
from ._settings import (
    available_isas,
    get_isa,
    get_num_threads,
    set_buffer_cache,
    set_isa,
    set_num_threads,
    show_config,
)
from ._types import DerivedContext, Gradients, SwitchableGradients, WeightGradients
from .blocked import from_blocked, to_blocked
from .cosine import CosineNorm, cosine_norm
from .deploy import Folded, FoldedBefore, fold_batch_norm, fold_batch_norm_before
from .functional import (
    backward,
    batch_norm,
    batch_renorm,
    group_norm,
    instance_norm,
    instance_renorm,
    layer_norm,
    rms_norm,
    switchable_norm,
)
from .guide import Recommendation, recommend
from .layers import (
    BatchNorm,
    BatchRenorm,
    GroupNorm,
    InstanceNorm,
    InstanceRenorm,
    LayerNorm,
    RMSNorm,
    SwitchableNorm,
    batch_renorm_d_max,
    batch_renorm_r_max,
)
from .lengths import normalize
from .moments import Moments
from .reparam import WeightNorm, WeightNormInit, weight_norm, weight_norm_init
from .sync import SyncBatchNorm, sync_batch_norm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "Context",
    "CosineNorm",
    "DerivedContext",
    "Folded",
    "FoldedBefore",
    "Gradients",
    "GroupNorm",
    "InstanceNorm",
    "InstanceRenorm",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "Recommendation",
    "SwitchableGradients",
    "SwitchableNorm",
    "SyncBatchNorm",
    "WeightGradients",
    "WeightNorm",
    "WeightNormInit",
    "__version__",
    "available_isas",
    "backward",
    "batch_norm",
    "batch_renorm",
    "batch_renorm_d_max",
    "batch_renorm_r_max",
    "comm",
    "cosine_norm",
    "fold_batch_norm",
    "fold_batch_norm_before",
    "from_blocked",
    "get_isa",
    "get_num_threads",
    "group_norm",
    "instance_norm",
    "instance_renorm",
    "layer_norm",
    "normalize",
    "outofcore",
    "recommend",
    "rms_norm",
    "set_buffer_cache",
    "set_isa",
    "set_num_threads",
    "show_config",
    "switchable_norm",
    "sync_batch_norm",
    "to_blocked",
    "weight_norm",
    "weight_norm_init",
]
