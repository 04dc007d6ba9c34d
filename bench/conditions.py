"""What a report says about the machine and the run."""

import contextlib
import io
import os
import platform
import time

import fastnorm


def conditions(versions, rounds):
    """Name, in words and in order, what the numbers depend on."""
    config = _config()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "load": f"{os.getloadavg()[0]:.1f} processes in the minute before",
        "caches": config["caches"],
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "compiler": config["compiler"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "waiting threads": _wait_policy(),
        "memory": _memory(),
        "numbers": f"medians of {rounds} rounds (fewer of long calls), contestants in turns; "
        "NumPy has one thread",
    }


def _config():
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        fastnorm.show_config()
    return dict(line.split(": ", 1) for line in text.getvalue().splitlines() if ": " in line)


def _processor():
    try:
        import cpuinfo

        return cpuinfo.get_cpu_info()["brand_raw"]
    except Exception:  # on processors that it does not know it fails in many ways
        return platform.processor() or platform.machine()


def _memory():
    if os.environ.get("MALLOC_MMAP_MAX_") == "0":
        return "freed results are reused, so that peers, which allocate theirs, pay no page faults"
    return "peers, which allocate their results, pay page faults for large ones"


def _wait_policy():
    policy = os.environ.get("OMP_WAIT_POLICY")
    spins = os.environ.get("GOMP_SPINCOUNT")
    if spins is not None:
        return f"spin {spins} times, then sleep, in fastnorm, torch and oneDNN alike"
    if policy is not None:
        return f"OMP_WAIT_POLICY={policy}, in fastnorm, torch and oneDNN alike"
    return "fastnorm's sleep at once, others' spin (not started as `fastnorm bench`)"
