"""The normalizers: each one's function beside its layer, in a module of their name.

What is entered here is in :mod:`fastnorm`, :mod:`fastnorm.functional` and :mod:`fastnorm.layers`.
"""

from ._gradients import backward, gradient_sums
from .batch import (
    BatchNorm,
    BatchRenorm,
    batch_norm,
    batch_renorm,
    batch_renorm_d_max,
    batch_renorm_r_max,
)
from .cosine import CosineNorm, cosine_norm
from .filter_response import FilterResponseNorm, filter_response_norm
from .global_response import GlobalResponseNorm, global_response_norm
from .group import GroupNorm, group_norm
from .instance import InstanceNorm, InstanceRenorm, instance_norm, instance_renorm
from .layer import LayerNorm, RMSNorm, layer_norm, rms_norm
from .length import normalize
from .switchable import SwitchableNorm, switchable_norm
from .weight import WeightNorm, WeightNormInit, weight_norm, weight_norm_init
from .whitening import DecorrelatedBatchNorm, IterNorm, decorrelated_batch_norm, iter_norm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "CosineNorm",
    "DecorrelatedBatchNorm",
    "FilterResponseNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "InstanceRenorm",
    "IterNorm",
    "LayerNorm",
    "RMSNorm",
    "SwitchableNorm",
    "WeightNorm",
    "WeightNormInit",
    "backward",
    "batch_norm",
    "batch_renorm",
    "batch_renorm_d_max",
    "batch_renorm_r_max",
    "cosine_norm",
    "decorrelated_batch_norm",
    "filter_response_norm",
    "global_response_norm",
    "gradient_sums",
    "group_norm",
    "instance_norm",
    "instance_renorm",
    "iter_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
    "switchable_norm",
    "weight_norm",
    "weight_norm_init",
]
