"""The command line of ``fastnorm scale``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from . import scale_file
from ._checks import BLOCK_BYTES
from ._hdf5 import split_name
from ._scaling import METHODS


def _axes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read numbers separated by commas."""
    try:
        return None if value is None else tuple(map(int, value.split(",")))
    except ValueError:
        message = f"{value!r}: expected whole numbers, such as 0,1"
        raise click.BadParameter(message) from None


@click.command("scale", options_metavar="[OPTIONS]")
@click.argument("files", metavar="IN.npy OUT.npy", nargs=-1)
@click.option("--output-dir", metavar="DIR", type=click.Path(file_okay=False),
              help="All files are inputs, with statistics in common; outputs have their names, in "
              "this folder.")  # fmt: skip
@click.option("--method", type=click.Choice(list(METHODS)),
              help="To mean 0 and variance 1, or to between 0 and 1; by default standard, or that "
              "of --stats.")  # fmt: skip
@click.option("--axis", callback=_axes, help="Axes whose elements share statistics, as 0,1; by "
              "default all but the last.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32", "float64"]),
              help="Of the output; by default as the input, float64 for integers.")  # fmt: skip
@click.option("--stats", metavar="JSON", help="Scale with the statistics in this file.")
@click.option("--save-stats", metavar="JSON", help="Write the statistics into this file.")
@click.option("--group-by", "groups", metavar="LABELS.npy", multiple=True,
              help="A label for each row: each group has its own statistics. With several inputs, "
              "once for each of them, in their order.")  # fmt: skip
@click.option("--block-bytes", type=click.IntRange(1), default=BLOCK_BYTES, show_default=True,
              help="Bytes read at a time; fewer than 4 such blocks are in memory.")  # fmt: skip
@click.option("--progress/--no-progress", default=None,
              help="Show a progress bar; by default in a terminal.")  # fmt: skip
def command(
    files: tuple[str, ...],
    output_dir: str | None,
    groups: tuple[str, ...],
    progress: bool | None,
    **options: Any,
) -> None:
    """Scale each feature of an array that need not fit the memory.

    A file may also be a dataset in an HDF5 file, as file.h5:/group/name. OUT.npy, or each file of
    the folder, appears, or is replaced, when all are complete.
    """
    sources, targets = _pairs(files, output_dir)
    if groups and len(groups) != len(sources):
        raise click.UsageError(f"--group-by: expected {len(sources)}, one for each input")
    show = sys.stderr.isatty() if progress is None else progress
    try:
        with _signals(), _folder(output_dir):
            scale_file(sources, targets, groups=list(groups) or None, progress=show, **options)
    except (OSError, ValueError, TypeError, MemoryError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error


def _pairs(files: tuple[str, ...], output_dir: str | None) -> tuple[list[str], list[str]]:
    """Return inputs and the output of each."""
    if "-" in files:
        raise click.UsageError("-: expected files, which can be read twice; one called so is ./-")
    needed = ["IN.npy", "OUT.npy"][: 2 if output_dir is None else 1]
    if len(files) < len(needed):
        raise click.UsageError(f"Missing argument '{needed[len(files)]}'.")
    if output_dir is None:
        if len(files) > 2:
            raise click.UsageError("Several inputs need --output-dir.")
        return [files[0]], [files[1]]
    targets: dict[str, str] = {}
    for name in files:
        file, dataset = split_name(name)
        target = os.path.join(output_dir, os.path.basename(file))
        target += "" if dataset is None else f":{dataset}"
        if target in targets:
            raise click.UsageError(f"{targets[target]} and {name} would both become {target}.")
        targets[target] = name
    return list(files), list(targets)


@contextmanager
def _folder(name: str | None) -> Iterator[None]:
    """Make a folder, to stay if all goes well."""
    path = Path(name) if name is not None else None
    if path is None or path.exists():
        yield
        return
    path.mkdir()
    try:
        yield
    except BaseException:
        with suppress(OSError):  # someone else uses it
            path.rmdir()
        raise


@contextmanager
def _signals() -> Iterator[None]:
    """Let signals that end the program clean up first, undisturbed by a second one."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    # what nohup, or a shell for its background jobs, has ignored stays so
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}

    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if came:
            return
        came.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items() if not came else ():  # else the program ends
            signal.signal(number, handler)
