"""The console script ``fastnorm``."""

import importlib
import os
import sys
from typing import Any

# Libraries read these as they are loaded. GNU's OpenMP: fastnorm, torch and oneDNN wait alike, as
# long as it does by itself (fastnorm alone would let its threads sleep). The C library: freed
# memory stays, so that nobody's results cost page faults.
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "300000",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


def bench_environment() -> dict[str, str]:
    """Return what `bench` still has to set; who set a wait policy keeps it."""
    return {
        name: value
        for name, value in ENVIRONMENT.items()
        if name not in os.environ
        and not (name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in os.environ)
    }


def main() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == ["bench"] and bench_environment():
        os.environ.update(bench_environment())
        os.execv(sys.executable, sys.orig_argv)
    try:
        import click

        commands: dict[str, Any] = {"bench": _command("bench")}
    except ModuleNotFoundError as error:
        sys.exit(f'fastnorm: {error.name} is missing: pip install "fastnorm-cpu[bench]"')
    group = click.Group("fastnorm", commands, help="Normalizers for NumPy on the CPU.")
    click.version_option(package_name="fastnorm-cpu")(group)(prog_name="fastnorm")


def _command(name: str) -> Any:
    return importlib.import_module(f"fastnorm.{name}.command").command
