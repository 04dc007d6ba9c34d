"""A call of a normalizer on its way through the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import _core
from .._types import AnyContext, Array

# what is updated in training
STATES = ("running_mean", "running_var", "running_cov")


class Result(NamedTuple):
    """What a call gives.

    y; the sum of x and the residual, where there was one; the context, where it was asked for; the
    scales of a quantized y, where they were not given.
    """

    y: Array
    sum: Array | None = None
    ctx: AnyContext | None = None
    scales: Array | None = None


@dataclass(frozen=True)
class Call:
    """Arguments of `channel_norm` or `axis_norm` of the core, and the keywords that are around.

    `entry` is one of the two, or is called in their place, for a normalizer outside the core. A
    call of the normalizers of axes has an ``axis``, one of the others a ``layout``.
    """

    entry: Callable[..., Any]
    arguments: Mapping[str, Any]
    around: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def norm(self) -> str:
        """The normalizer: of `_core.NORMS`, or "sync_batch" or "whitening"."""
        number = self["norm"]
        return number if isinstance(number, str) else _core.NORMS[number]

    def states(self) -> dict[str, Any]:
        """Return the running statistics that were given."""
        given = {name: self.arguments.get(name) for name in STATES}
        return {name: a for name, a in given.items() if a is not None}

    def check(self, x: Array, **own: Any) -> None:
        """Raise what is wrong with small arguments: call the normalizer with an x without samples.

        Sync batch norm looks at this rank alone.
        """
        entry = getattr(self.entry, "check", self.entry)
        rest = {"weight": None, "bias": None, "out": None, "return_ctx": False, **own}
        entry(**{**self.arguments, **rest, "x": x[:0]})

    def but(self, around: Mapping[str, Any] | None = None, **arguments: Any) -> Call:
        """Return the call with other arguments and, where given, other keywords around."""
        return Call(
            self.entry,
            {**self.arguments, **arguments},
            self.around if around is None else around,
        )

    def without(self, names: frozenset[str]) -> Call:
        """Return the call less some keywords."""
        return self.but({k: v for k, v in self.around.items() if k not in names})


def public(found: Result) -> Any:
    """Return y, or the tuple that the caller of a normalizer expects: y, scales, sum, context."""
    parts = (found.y, found.scales, found.sum, found.ctx)
    some = tuple(part for part in parts if part is not None)
    return some if len(some) > 1 else found.y
