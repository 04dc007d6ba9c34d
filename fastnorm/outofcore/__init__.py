"""Larger than memory: files, HDF5 datasets and dask arrays, block by block; tables with labels.

Two passes: the first merges the statistics of the blocks, the second scales each block with them.
`fit` and ``scale(..., stats=...)`` do one of them; `Stats` can be kept in a file. NaN is a missing
value, as in scikit-learn's scalers, and so is what is masked: statistics leave it out, and it stays
so (in a file, which has no masks, as NaN). With `groups` each group of rows has its own statistics.
"""

from ._arrays import fit, moments, scale
from ._files import scale_file
from ._stats import Stats

__all__ = ["Stats", "fit", "moments", "scale", "scale_file"]
