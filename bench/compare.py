"""Who computes something else is not timed: each contestant's first result beside fastnorm's."""

import numpy as np

ELEMENTS = 1000
# of the largest element; what a formula done otherwise differs by in arrays of 100 MB
TOLERANCES = {"float32": 1e-3, "float64": 1e-6, "float16": 1e-2, "bfloat16": 5e-2}


def first_array(result, case):
    """Return y or dx, NumPy's or torch's array, with the axes of the case's layout; no copy."""
    array = result[0] if isinstance(result, (tuple, list)) else result
    if not hasattr(array, "detach"):
        return np.asarray(array)
    array = array.detach()  # torch has channels second, whatever their order in memory
    return array.permute(0, 2, 3, 1) if case.layout == "NHWC" else array


def to_float64(array):
    """Convert either: NumPy has no bfloat16."""
    return array.double().numpy() if hasattr(array, "double") else array.astype(np.float64)


def sample(result, case):
    """Return elements of y or dx, the same of each contestant, spread by chance."""
    array = first_array(result, case)
    where = np.random.default_rng(0).integers(case.stored, size=(ELEMENTS, len(case.stored)))
    return to_float64(array[tuple(where.T)])


class Comparison:
    """Of the contestants of a case, fastnorm first."""

    def __init__(self, case):
        self.tolerance = TOLERANCES[case.dtype]
        self.wanted = None

    def take(self, name, got):
        """Raise an error if a contestant's sample is not fastnorm's."""
        if name == "fastnorm":
            self.wanted = got
        elif self.wanted is not None:
            off = np.abs(got - self.wanted).max()
            if not off <= self.tolerance * np.abs(self.wanted).max():  # NaN is wrong, too
                raise RuntimeError(
                    f"its result differs from fastnorm's by more than {self.tolerance:g} "
                    "of the largest element"
                )
