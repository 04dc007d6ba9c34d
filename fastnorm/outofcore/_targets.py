"""Files that appear, or are replaced, when all of them are complete."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._checks import naming, text_of
from ._hdf5 import split_name


@dataclass(frozen=True)
class Target:
    """A file to be written, or a dataset in one."""

    name: str  # as it was given
    path: Path  # of the file, links followed
    dataset: str | None = None


def parse_target(name: Any, argument: str = "target") -> Target:
    """Read the name of an output; only a target may be a dataset."""
    text = text_of(argument, name)
    file, dataset = split_name(text) if argument == "target" else (text, None)
    with naming(text):
        path = Path(os.path.realpath(file))
        is_file = path.is_file() if path.exists() else not file.endswith("/")
    if not is_file:
        raise ValueError(f"{argument}: expected the name of a file, got {text}")
    return Target(text, path, dataset)


def check_distinct(
    targets: Sequence[Target], inputs: Sequence[tuple[str, str, str | None]]
) -> None:
    """Refuse a target that is another one, or an input: (what, file, dataset in it)."""
    for i, target in enumerate(targets):
        for other in targets[:i]:
            if target.path == other.path and _overlap(target.dataset, other.dataset):
                raise ValueError(f"target: expected different files, got {target.name} twice")
        for what, file, dataset in inputs:
            if not target.path.exists() or not os.path.exists(file):
                continue
            if target.path.samefile(file) and _overlap(target.dataset, dataset):
                raise ValueError(
                    f"target: expected another file than the {what}, got {target.name}"
                )


def _overlap(a: str | None, b: str | None) -> bool:
    """Whether two parts of one file, None for all of it, are the same."""
    return a is None or b is None or a == b


@contextmanager
def replacing(targets: Sequence[Target]) -> Iterator[dict[Path, Path]]:
    """Give a hidden file for each file, to be written: all take their names at the end, or none.

    A file that is replaced keeps its mode, and where that is allowed its owner. One that gets a
    dataset keeps the others.
    """
    # a short name, since that of the target may be as long as the system allows
    unfinished = {t.path: t.path.with_name(f".fastnorm-{secrets.token_hex(8)}") for t in targets}
    try:
        for target in {target.path: target for target in targets}.values():
            with naming(target.name):
                _create(unfinished[target.path], target)
        yield unfinished
        for target in {target.path: target for target in targets}.values():
            with naming(target.name):
                _complete(unfinished[target.path], target.path)
        for target in {target.path: target for target in targets}.values():
            with naming(target.name):
                os.replace(unfinished[target.path], target.path)
    finally:
        for path in unfinished.values():
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()


def _create(path: Path, target: Target) -> None:
    # what replaces a file is nobody else's to read before it has that file's mode
    is_new = not target.path.exists()
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if is_new else 0o600))
    if target.dataset is not None and not is_new:
        shutil.copyfile(target.path, path)


def _complete(path: Path, old: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        if old.exists():
            like = old.stat()
            for owner in ((like.st_uid, like.st_gid), (-1, like.st_gid)):
                with suppress(PermissionError):
                    os.fchown(file, *owner)
                    break
            os.fchmod(file, stat.S_IMODE(like.st_mode))
        os.fsync(file)
    finally:
        os.close(file)
