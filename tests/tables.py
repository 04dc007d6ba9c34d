"""Tables to be scaled, and what becomes of them."""

import numpy as np

from fastnorm import outofcore

METHODS = ["standard", "minmax"]


def oracle(x, axis, method):
    """Two passes of NumPy in long double; NaN is missing."""
    x = np.asarray(x, np.longdouble)
    if method == "standard":
        center = np.nanmean(x, axis, keepdims=True)
        width = np.sqrt(np.nanmean((x - center) ** 2, axis, keepdims=True))
    else:
        center = np.nanmin(x, axis, keepdims=True)
        width = np.nanmax(x, axis, keepdims=True) - center
    return ((x - center) / np.where(width, width, 1)).astype(np.float64)


def table(shape, dtype="float64", order="C"):
    x = np.random.default_rng(0).normal(50, 20, shape)
    return np.asarray(x, dtype, order=order)


def scaled(tmp_path, x, **options):
    np.save(tmp_path / "in.npy", x)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npy", "out.npy"]
    return np.load(tmp_path / "out.npy")
