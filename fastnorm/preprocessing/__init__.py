"""Scalers with scikit-learn's interface, at the speed of memory; they need the extra ``sklearn``.

One read of X to fit, one read and one write to transform, on all threads, with no temporary of X's
size (but of what is no float array, which is converted). :class:`StandardScaler` and
:class:`MinMaxScaler` take the arguments of scikit-learn's classes of these names and have their
attributes. :class:`Whitener` also removes the correlation of the features.

What they find differs from scikit-learn's in the last digits, and is nearer the truth where a mean
is large against its deviation. Besides: the attributes are float64 whatever X's dtype is; a call
that fails leaves the scaler as it was; arrays of other libraries than NumPy and SciPy, and
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
