"""Scalers with scikit-learn's interface, at the speed of memory; they need the extra ``sklearn``.

One read of X to fit, one read and one write to transform, on all threads, with no temporary of X's
size (but of what is no float array, which is converted). :class:`StandardScaler`,
:class:`MinMaxScaler`, :class:`MaxAbsScaler` and :class:`RobustScaler` take the arguments of
scikit-learn's classes of these names and have their attributes. :class:`Whitener` also removes the
correlation of the features. Quantiles are sorted for, on one thread.

What they find differs from scikit-learn's in the last digits, and is nearer the truth where a mean
is large against its deviation. Besides:

- The attributes are float64 whatever X's dtype is. The result has X's dtype, or that of the
  argument `dtype`; `clip` bounds it.
- A feature is constant, and not scaled, where its deviation or range is exactly 0: all its values
  are equal. scikit-learn takes for constant what is near that.
- Masked values of a ``numpy.ma`` array are passed over, as NaN is. What `transform` makes of such
  an array has its mask, and NaN below it, so that whoever drops the mask meets no number there.
  :class:`Whitener` needs whole samples, and refuses both.
- A call that fails leaves the scaler as it was. Arrays of other libraries than NumPy and SciPy, and
  callbacks, are not supported.

X in C order is read as it lies, and so is X in Fortran order, as most data frames keep it. Other
strides are copied a few megabytes at a time.
"""

try:
    from sklearn.utils.validation import validate_data as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fastnorm.preprocessing: expected scikit-learn 1.6 or newer: "
        f"pip install 'fastnorm-cpu[sklearn]' ({error})"
    ) from error

from ._ranges import MaxAbsScaler, MinMaxScaler
from ._robust import RobustScaler
from ._standard import StandardScaler
from ._whitener import Whitener

__all__ = ["MaxAbsScaler", "MinMaxScaler", "RobustScaler", "StandardScaler", "Whitener"]
