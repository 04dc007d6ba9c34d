"""Batch norm of several micro-batches as of one batch: moments and gradient sums that are added."""

import numpy as np
import pytest
from cases import same, some

import fastnorm as fn

X = some(2, 4, 3, 3)


@pytest.mark.parametrize("around", [{}, {"activation": "silu"},
                                    {"shortcut": 1, "activation": "relu"},
                                    {"gate": 1, "gate_activation": "sigmoid"}])  # fmt: skip
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_micro_batches_are_as_one_batch(dtype, layout, around):
    x, dy = some(7, 4, 5, 6, dtype=dtype), some(7, 4, 5, 6, dtype=dtype)[::-1].copy()
    if layout == "NHWC":
        x, dy = x.transpose(0, 2, 3, 1).copy(), dy.transpose(0, 2, 3, 1).copy()
    w, b = some(4, dtype=dtype), some(4, dtype=dtype)
    around = {k: x[::-1] + 1 if v == 1 else v for k, v in around.items()}
    call = {"training": True, "layout": layout, "return_ctx": True}
    y, ctx = fn.batch_norm(x, w, b, **call, **around)
    whole = fn.backward(dy, ctx)
    parts, grads = np.split(x, [2, 3]), np.split(dy, [2, 3])
    beside = [{k: np.split(v, [2, 3])[i] if isinstance(v, np.ndarray) else v
               for k, v in around.items()} for i in range(3)]  # fmt: skip
    total = fn.Moments.merge(fn.Moments.from_array(p, layout=layout) for p in parts)
    calls = [fn.batch_norm(p, w, b, **call, moments=total, **more)
             for p, more in zip(parts, beside, strict=True)]  # fmt: skip
    sums = [fn.gradient_sums(g, c) for g, (_, c) in zip(grads, calls, strict=True)]
    summed = sums[0] + sums[1] + sums[2]
    found = [fn.backward(g, c, sums=summed) for g, (_, c) in zip(grads, calls, strict=True)]
    near = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(np.concatenate([p for p, _ in calls]), y, atol=near)
    for name in {"x", "shortcut", "gate"} & {"x", *around}:
        together = np.concatenate([getattr(g, name) for g in found])
        np.testing.assert_allclose(together, getattr(whole, name), atol=near)
    np.testing.assert_allclose(sum(g.weight for g in found), whole.weight, rtol=1e-4, atol=near)
    with pytest.raises(ValueError, match="sums: expected those of all 210 elements"):
        fn.backward(grads[0], calls[0][1])
    out = np.empty_like(parts[0])
    assert fn.batch_norm(parts[0], w, b, **{**call, "return_ctx": False}, moments=total, out=out,
                         **beside[0]) is out  # fmt: skip
    same(out, calls[0][0])


@pytest.mark.parametrize(("around", "message"), [
    ({"residual": X}, "residual: expected None with moments"),
    ({"virtual_batch_size": 2}, "moments: expected None with virtual_batch_size"),
    ({"shortcut": X[:1]}, "shortcut: expected x's shape"),
    ({"activation": "swish"}, "activation: expected one of"),
    ({"activation": "relu", "out": X[:1].copy()}, "out: expected shape"),
])  # fmt: skip
def test_what_moments_do_not_go_with(around, message):
    mean, var = np.zeros(4, np.float32), np.ones(4, np.float32)
    with pytest.raises(ValueError, match=message):
        fn.batch_norm(X, training=True, moments=fn.Moments.from_array(X, layout="NCHW"),
                      running_mean=mean, running_var=var, **around)  # fmt: skip
    assert not mean.any()


def test_cast_does_not_go_with_moments_in_16_bits():
    x, w = X.astype(np.float16), np.ones(4, np.float16)
    with pytest.raises(ValueError, match="cast: expected None with moments"):
        fn.batch_norm(x, w, training=True, cast="before_weight",
                      moments=fn.Moments.from_array(x, layout="NCHW"))  # fmt: skip
