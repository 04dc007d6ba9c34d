"""The command line of ``fastnorm scale``."""

from __future__ import annotations

import signal
import sys

import click

from . import BLOCK_BYTES, scale_file
from ._scaling import METHODS


def _axes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read numbers separated by commas."""
    try:
        return None if value is None else tuple(map(int, value.split(",")))
    except ValueError:
        message = f"{value!r}: expected whole numbers, such as 0,1"
        raise click.BadParameter(message) from None


@click.command("scale")
@click.argument("source", metavar="IN.npy")
@click.argument("target", metavar="OUT.npy")
@click.option("--method", type=click.Choice(list(METHODS)), default="standard", show_default=True,
              help="To mean 0 and variance 1, or to between 0 and 1.")  # fmt: skip
@click.option("--axis", callback=_axes, help="Axes whose elements share statistics, as 0,1; by "
              "default all but the last.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32", "float64"]),
              help="Of the output; by default as the input, float64 for integers.")  # fmt: skip
@click.option("--block-bytes", type=click.IntRange(1), default=BLOCK_BYTES, show_default=True,
              help="Bytes read at a time; fewer than 4 such blocks are in memory.")  # fmt: skip
@click.option("--progress/--no-progress", default=None,
              help="Show a progress bar; by default in a terminal.")  # fmt: skip
def command(
    source: str,
    target: str,
    method: str,
    axis: tuple[int, ...] | None,
    dtype: str | None,
    block_bytes: int,
    progress: bool | None,
) -> None:
    """Scale each feature of an array that need not fit the memory.

    OUT.npy appears, or is replaced, when it is complete.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # cleans up
    try:
        scale_file(
            source,
            target,
            method=method,
            axis=axis,
            dtype=dtype,
            block_bytes=block_bytes,
            progress=sys.stderr.isatty() if progress is None else progress,
        )
    except (OSError, ValueError, TypeError, MemoryError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error
