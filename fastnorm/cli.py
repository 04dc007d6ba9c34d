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


# Which module holds a command, and the extra that it needs.
COMMANDS = {
    "bench": ("fastnorm.bench.command", "bench"),
    "bench-fused": ("fastnorm.bench.fused", "bench"),
    "scale": ("fastnorm.outofcore.command", "scale"),
}


def main() -> None:
    """Run the command that the arguments name."""
    wanted = sys.argv[1] if sys.argv[1:] else ""
    extra = COMMANDS.get(wanted, COMMANDS["bench"])[1]
    alike = wanted in COMMANDS and extra == "bench" and "--as-installed" not in sys.argv
    if alike and bench_environment():
        os.environ.update(bench_environment())
        os.execv(sys.executable, sys.orig_argv)
    try:
        import click
    except ModuleNotFoundError:
        sys.exit(_is_missing("click", extra))
    names = [wanted] if wanted in COMMANDS else COMMANDS  # imports no other than it needs
    commands = {name: _command(name, *COMMANDS[name]) for name in names}
    group = click.Group("fastnorm", commands, help="Normalizers for NumPy on the CPU.")
    click.version_option(package_name="fastnorm-cpu")(group)(prog_name="fastnorm")


def _is_missing(module: str | None, extra: str) -> str:
    return f'fastnorm: {module} is missing: pip install "fastnorm-cpu[{extra}]"'


def _command(name: str, module: str, extra: str) -> Any:
    """Return the command, or one that says what it lacks."""
    import click

    try:
        return importlib.import_module(module).command
    except ModuleNotFoundError as error:
        text = _is_missing(error.name, extra)
    return click.Command(
        name,
        callback=lambda: sys.exit(text),
        help=text,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
