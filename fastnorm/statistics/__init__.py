"""Statistics as values, and the affine map that is made of them.

What the scalers of :mod:`fastnorm.preprocessing` and the files of :mod:`fastnorm.outofcore` have in
common: `moments` and `extremes` of features, which merge and pass over NaN, and `affine`, which
scales by them.
"""
