"""The guide: which normalizer for which task, and with how many groups.

``docs/choosing.md`` tells the same at more length; a test keeps its table equal to this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fastnorm

from ._check import count
from .norms._base import Norm

__all__ = ["Recommendation", "num_groups_for", "recommend"]

SMALL = 16  # samples; below, the statistics of a batch cost accuracy (Wu & He 2018, table 2)
_OF_BATCH = ("BatchNorm", "BatchRenorm", "SwitchableNorm", "SyncBatchNorm")


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` returns.

    Attributes
    ----------
    normalizer : str
        Name of the layer in :mod:`fastnorm`.
    arguments : dict of str to object
        Keyword arguments of the layer that differ from its defaults, with the channels where
        they were given.
    reason : str
        Why, with the paper.
    alternatives : dict of str to str
        Other normalizers, and when to take them instead.
    batch_advice : str
        How many samples a batch needs.
    """

    normalizer: str
    arguments: dict[str, Any]
    reason: str
    alternatives: dict[str, str]
    batch_advice: str

    def layer(self, **more: Any) -> Norm:
        """Make the layer; `more` are further arguments, as ``layout``.

        Raises
        ------
        TypeError
            An argument that the layer does not have, or no channels, neither here nor in the call
            of `recommend`.
        """
        layer: Norm = getattr(fastnorm, self.normalizer)(**{**self.arguments, **more})
        return layer


@dataclass(frozen=True)
class _Choice:
    normalizer: str
    reason: str


@dataclass(frozen=True)
class _Task:
    large: _Choice
    small: _Choice  # for batches below SMALL samples
    alternatives: dict[str, str]


def _any_batch(normalizer: str, reason: str, alternatives: dict[str, str]) -> _Task:
    choice = _Choice(normalizer, reason)
    return _Task(choice, choice, alternatives)


TASKS = {
    "classification": _Task(
        _Choice("BatchNorm", "its noise regularizes (Ioffe & Szegedy 2015, arXiv:1502.03167): "
                "ResNet-50 errs in 23.6 % of ImageNet with batches of 32, with Group Norm in 24.1 "
                "(Wu & He 2018, arXiv:1803.08494); free after fold_batch_norm"),
        _Choice("GroupNorm", "its statistics are those of one sample: ResNet-50 errs in 24.1 % of "
                "ImageNet with batches of 32 and of 2, Batch Norm in 23.6 and 34.7 "
                "(Wu & He 2018, arXiv:1803.08494)"),
        {"BatchRenorm": "small batches, where inference must stay Batch Norm "
         "(Ioffe 2017, arXiv:1702.03275)",
         "SwitchableNorm": "accuracy counts more than speed: it measures three statistics and "
         "does not fold (Luo et al. 2018, arXiv:1806.10779)"},
    ),
    "style_transfer": _any_batch(
        "InstanceNorm", "removes the contrast of each content image, which must not show "
        "(Ulyanov et al. 2016, arXiv:1607.08022); one weight and bias for each style "
        "(Dumoulin et al. 2016, arXiv:1610.07629)",
        {"InstanceRenorm": "differences between images carry meaning and should partly stay"},
    ),
    "image_generation": _any_batch(
        "InstanceNorm", "one image at a time has no batch, and its look is its own "
        "(Isola et al. 2016, arXiv:1611.07004; Zhu et al. 2017, arXiv:1703.10593)",
        {"GroupNorm": "diffusion networks (Ho et al. 2020, arXiv:2006.11239), and where relations "
         "between channels matter"},
    ),
    "several_devices": _any_batch(
        "SyncBatchNorm", "the batches of all devices make one large one, for an exchange of two "
        "numbers a channel, forward and backward (Peng et al. 2017, arXiv:1711.07240)",
        {"GroupNorm": "devices are linked slowly, or all of them together hold fewer than "
         f"{SMALL} samples"},
    ),
    "mobile": _Task(
        _Choice("BatchNorm", "fold_batch_norm makes it vanish from the deployed network "
                "(Jacob et al. 2017, arXiv:1712.05877)"),
        _Choice("BatchRenorm", "its inference is that of Batch Norm and folds too, and its "
                "training bears small batches (Ioffe 2017, arXiv:1702.03275)"),
        {"GroupNorm": "even Batch Renorm's batches are too small; it costs time in inference"},
    ),
    "transformer": _any_batch(
        "LayerNorm", "lengths and batches vary, a token is its own domain "
        "(Ba et al. 2016, arXiv:1607.06450); put it before each block, to train without warm-up "
        "(Xiong et al. 2020, arXiv:2002.04745)",
        {"RMSNorm": "new models: comparable without the mean "
         "(Zhang & Sennrich 2019, arXiv:1910.07467)"},
    ),
    "multi_task": _any_batch(
        "SwitchableNorm", "each layer learns which statistics suit it "
        "(Luo et al. 2018, arXiv:1806.10779)",
        {"BatchNorm": "one for each task, on shared convolutions "
         "(Bilen & Vedaldi 2017, arXiv:1701.07275)",
         "GroupNorm": "one normalizer that mixes no tasks' samples"},
    ),
    "gan": _Task(
        _Choice("BatchNorm", "steadies both networks; not at the generator's output nor at the "
                "discriminator's input (Radford et al. 2015, arXiv:1511.06434)"),
        _Choice("InstanceNorm", "Batch Norm lets each sample depend on the others of its batch "
                "(Salimans et al. 2016, arXiv:1606.03498), most in a small one; CycleGAN's choice "
                "(Zhu et al. 2017, arXiv:1703.10593)"),
        {"LayerNorm": "a critic with a gradient penalty, where samples must not mix "
         "(Gulrajani et al. 2017, arXiv:1704.00028)"},
    ),
    "medical": _any_batch(
        "GroupNorm", "volumes leave room for one or two samples in a batch, which it does not need "
        "(Wu & He 2018, arXiv:1803.08494; Myronenko 2018, arXiv:1810.11654)",
        {"InstanceNorm": "intensities differ from scanner to scanner; nnU-Net uses it "
         "(Isensee et al. 2018, arXiv:1809.10486)"},
    ),
}  # fmt: skip


def num_groups_for(channels: int) -> int:
    """Return the default number of groups: 32, else 16, else the largest divisor below 32.

    A group has at least two channels, since one of its own is Instance Norm.

    Parameters
    ----------
    channels : int

    Returns
    -------
    int
        A divisor of `channels`; 1, which is Layer Norm, where they are prime.

    References
    ----------
    Wu, He: Group Normalization, 2018, table 3: 32 groups, or 16 channels in a group, err least;
    any number from 2 to 64 is within 0.6 points. arXiv:1803.08494

    Examples
    --------
    >>> from fastnorm.guide import num_groups_for
    >>> [num_groups_for(channels) for channels in (256, 48, 32, 40, 7)]
    [32, 16, 16, 20, 1]
    """
    channels = count(channels, "channels")
    fits = (n for n in (32, 16, *range(31, 0, -1)) if channels % n == 0 and channels >= 2 * n)
    return next(fits, 1)


def recommend(
    task: str, batch_size: int | None = None, channels: int | None = None
) -> Recommendation:
    """Say which normalizer suits a task, and why.

    Parameters
    ----------
    task : str
        "classification", "style_transfer", "image_generation", "several_devices", "mobile",
        "transformer", "multi_task", "gan" or "medical".
    batch_size : int, optional
        Samples that a process normalizes together; below 16 the answer may differ.
    channels : int, optional
        Channels, or features of a token: go into the arguments, and decide the number of groups.

    Returns
    -------
    Recommendation

    Raises
    ------
    TypeError
        An argument of the wrong type.
    ValueError
        Another task, or a count below 1.

    References
    ----------
    The reason names its papers; ``docs/choosing.md`` tells what they found.

    Examples
    --------
    >>> import fastnorm
    >>> choice = fastnorm.recommend(task="classification", batch_size=4, channels=256)
    >>> choice.normalizer, choice.arguments
    ('GroupNorm', {'num_groups': 32, 'num_channels': 256})
    >>> choice.layer(layout="NHWC")
    GroupNorm(32, 256, eps=1e-05, affine=True, layout='NHWC')
    >>> fastnorm.recommend("transformer").alternatives["RMSNorm"]
    'new models: comparable without the mean (Zhang & Sennrich 2019, arXiv:1910.07467)'
    """
    if not isinstance(task, str):
        raise TypeError(f"task: expected a str, got {type(task).__name__}")
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(map(repr, TASKS))}, got {task!r}")
    if batch_size is not None:
        batch_size = count(batch_size, "batch_size")
    if channels is not None:
        channels = count(channels, "channels")
    entry = TASKS[task]
    choice = entry.small if batch_size is not None and batch_size < SMALL else entry.large
    return Recommendation(
        choice.normalizer,
        _arguments(choice.normalizer, channels),
        choice.reason,
        dict(entry.alternatives),
        _batch_advice(choice.normalizer, batch_size),
    )


def _arguments(normalizer: str, channels: int | None) -> dict[str, Any]:
    size = {"GroupNorm": "num_channels", "LayerNorm": "normalized_shape"}
    arguments: dict[str, Any] = {} if channels is None else {
        size.get(normalizer, "num_features"): channels
    }  # fmt: skip
    if normalizer == "GroupNorm":
        return {"num_groups": 32 if channels is None else num_groups_for(channels), **arguments}
    if normalizer == "InstanceNorm":
        return {**arguments, "affine": True}
    return arguments


def _batch_advice(normalizer: str, batch_size: int | None) -> str:
    if normalizer not in _OF_BATCH:
        return "any batch size: no statistic crosses samples"
    advice = f"at least {SMALL} samples share statistics, better 32"
    if normalizer == "SyncBatchNorm":
        return f"on all devices together, {advice}"
    if batch_size == 1:
        return f"{advice}; 1 sample has only its positions to average over"
    if batch_size is not None:
        error = f"{100 * 2 / (batch_size - 1):.3g} %"
        return (
            f"{advice}; with {batch_size}, the variance of one normal value a sample has an "
            f"expected squared relative error of {error}"
        )
    return advice
