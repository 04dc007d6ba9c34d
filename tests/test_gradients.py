"""Gradients against finite differences in float64: of x, weight, bias and the logits."""

import numpy as np
import pytest
from cases import SHAPES, case_id, cases, copy_running, is_last, make_input

import fastnorm

STEP = 1e-6
# r and d are constants of the backward pass: with bounds at which they are constant, finite
# differences see the same (sigma_B / sigma and the mean shift are far outside in the input drawn)
RENORM = {"r_max": 1.0001, "d_max": 1e-4}


def loss_and_gradient(norm, x, args, kwargs, dy):
    _, ctx = getattr(fastnorm, norm.name)(x, *args, **copy_running(kwargs), return_ctx=True)
    return fastnorm.backward(dy, ctx)


def loss(norm, x, args, kwargs, dy):
    y = getattr(fastnorm, norm.name)(x, *args, **copy_running(kwargs))
    return float((y * dy).sum())


def check_direction(norm, x, args, kwargs, dy, which, gradient, rng):
    """The derivative along a random direction and along single elements."""
    target = x if which is None else args[which]
    directions = [rng.standard_normal(target.shape)]
    for _ in range(3):
        one = np.zeros(target.shape)
        one.flat[rng.integers(target.size)] = 1
        directions.append(one)
    for direction in directions:
        values = []
        for sign in (1, -1):
            moved = target + sign * STEP * direction
            if which is None:
                values.append(loss(norm, moved, args, kwargs, dy))
            else:
                values.append(loss(norm, x, [*args[:which], moved, *args[which + 1 :]], kwargs, dy))
        measured = (values[0] - values[1]) / (2 * STEP)
        expected = float((gradient * direction).sum())
        scale = np.abs(gradient).max() * np.abs(direction).sum() ** 0.5 + 1e-3
        assert abs(measured - expected) <= 1e-5 * scale, (measured, expected)


@pytest.mark.parametrize("case", cases(ranks=(2, 4)), ids=case_id)
def test_finite_differences(case, rng):
    norm, rank, layout = case
    x = make_input(rng, SHAPES[rank], layout, np.float64, mean=4.0)
    args, kwargs = norm.arguments(rng, x, layout)
    if "renorm" in norm.name:
        kwargs = {**kwargs, **RENORM}
    dy = rng.standard_normal(x.shape)
    grads = loss_and_gradient(norm, x, args, kwargs, dy)
    check_direction(norm, x, args, kwargs, dy, None, grads.x, rng)
    first = 1 if norm.name == "group_norm" else 0
    for which, name in enumerate(grads._fields[1 : 1 + len(args) - first]):
        gradient = getattr(grads, name)
        check_direction(norm, x, args, kwargs, dy, first + which, gradient, rng)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_renorm_corrections_are_constants(layout, rng):
    """Inside the bounds the gradient is that of the formula with r and d held fixed."""
    x = make_input(rng, (4, 3, 5, 5), layout, np.float64)
    axes = (0, 1, 2) if is_last(layout) else (0, 2, 3)
    shape = (1, 1, 1, 3) if is_last(layout) else (1, 3, 1, 1)
    running = {"running_mean": np.full(3, 0.2), "running_var": np.full(3, 2.0)}
    dy = rng.standard_normal(x.shape)
    _, ctx = fastnorm.batch_renorm(
        x, training=True, layout=layout, return_ctx=True, **copy_running(running)
    )
    dx = fastnorm.backward(dy, ctx).x
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    r = np.sqrt((var + 1e-5) / (2.0 + 1e-5))
    d = (mean - 0.2) / np.sqrt(2.0 + 1e-5)
    assert np.all(r > 1 / 3)
    assert np.all(r < 3)

    def fixed(x):
        z = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
        return float(((z * r.reshape(shape) + d.reshape(shape)) * dy).sum())

    direction = rng.standard_normal(x.shape)
    measured = (fixed(x + STEP * direction) - fixed(x - STEP * direction)) / (2 * STEP)
    np.testing.assert_allclose((dx * direction).sum(), measured, rtol=1e-6)
