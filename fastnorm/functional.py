"""The normalizers as functions of NumPy arrays, and their one backward.

All compute ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with a biased variance, and differ
in which elements share a mean and a variance. What holds for all of them:

- x is float32, float64, float16 or bfloat16 (of the package ml_dtypes), of any strides, alignment
  and byte order (an array that is not C-contiguous, aligned and native is copied first). Every
  other array must have x's dtype; parameters of a float16 or bfloat16 x may be float32 too, in
  which all is computed. Their gradients have their dtype.
- In the ``(N, C, *)`` normalizers x has rank 2 or more: N samples, C channels, any number of
  spatial axes. `layout` says where the channels are: first, ``(N, C, *)``, for "NCHW", "NC",
  "NCL", "NCDHW" or "channels_first"; last, ``(N, *, C)``, for "NHWC", "NLC", "NDHWC" or
  "channels_last"; or in blocks of 16 (8) channels, ``(N, ceil(C / 16), *, 16)``, for "NCHW16c"
  ("NCHW8c"), "NCL16c" or "NCDHW16c". There C is the length of the weight, the bias or the running
  mean, else that of all blocks; what is behind the last channel must be finite in x and is 0 in
  y: see :func:`fastnorm.to_blocked`. Whitening takes no blocks.
- ``weight=None`` means 1 and ``bias=None`` means 0.
- Running statistics are updated in place, ``running = (1 - momentum) * running + momentum * new``,
  so they must be writeable, native, C-contiguous arrays.
- `out` may be x itself, but for a context, which refers to x. Where it shares memory with x in
  another way, or with the weight, the bias or the logits, all is as if it did not. Over running
  statistics it is refused; so are running statistics that are to be updated and share memory with
  each other, with x or with a parameter. Strided arrays of which NumPy cannot tell with little work
  whether they overlap count as if they did.
- A masked array is refused, as its mask would be lost.
- An error is raised before anything is written, also where memory is missing.
"""

from .norms import *
from .norms import __all__ as __all__
