"""Trains bottleneck blocks of ResNet on digits, by fused and by separate calls of fastnorm.

A block is x -> relu(norm(1x1) -> 3x3 -> 1x1, + x), with Batch Norm behind each convolution. Images
are NHWC, so that a 1x1 convolution is a matrix product of all pixels, and a 3x3 one a product of
patches. Fused, the norm, the shortcut and the relu are one call, forward and backward:

    y, ctx = fastnorm.batch_norm(x, ..., activation="relu", shortcut=shortcut, return_ctx=True)
    dx, dweight, dbias, dshortcut, *_ = fastnorm.backward(dy, ctx)

Separate, they are three, as thrifty as NumPy lets one be: the sum and the relu go over the array
that the norm has just written, and backward does not need what was there.

References
----------
He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015. arXiv:1512.03385
"""

import numpy as np
import side_by_side
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits

import fastnorm

RATE = 0.1


def patches_of(x):
    """Return each pixel's 3x3 neighbourhood, zeros outside, as a row."""
    n, h, w, c = x.shape
    padded = np.zeros((n, h + 2, w + 2, c), x.dtype)
    padded[:, 1:-1, 1:-1] = x
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))  # n, h, w, c, 3, 3
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, 9 * c)


def from_patches(patches, shape):
    """Add each row to where it came from: the transpose of `patches_of`."""
    n, h, w, c = shape
    patches = patches.reshape(n, h, w, 3, 3, c)
    padded = np.zeros((n, h + 2, w + 2, c), patches.dtype)
    for i in range(3):
        for j in range(3):
            padded[:, i : i + h, j : j + w] += patches[:, :, :, i, j]
    return np.ascontiguousarray(padded[:, 1:-1, 1:-1])


class Network:
    """A 3x3 convolution, blocks, the mean over the pixels, and a matrix product to 10 classes."""

    def __init__(self, channels, blocks, fused, dtype=np.float32, seed=0):
        self.fused, self.dtype, self.blocks = fused, dtype, blocks
        self.clock = side_by_side.Clock()
        self.params, self.state = {}, {}
        rng, inner = np.random.default_rng(seed), channels // 4
        self._add("stem", rng, 9, channels)
        for i in range(blocks):
            self._add(f"{i} reduce", rng, channels, inner)
            self._add(f"{i} middle", rng, 9 * inner, inner)
            self._add(f"{i} expand", rng, inner, channels)
        self.params["head"] = self._random(rng, channels, 10)
        self.params["head bias"] = np.zeros(10, dtype)

    def _random(self, rng, features, out):
        scale = np.sqrt(2 / features)
        return (scale * rng.standard_normal((features, out))).astype(self.dtype)

    def _add(self, name, rng, features, out):
        """Add a convolution as a matrix, and the Batch Norm behind it."""
        self.params[name] = self._random(rng, features, out)
        self.params[name + " weight"] = np.ones(out, self.dtype)
        self.params[name + " bias"] = np.zeros(out, self.dtype)
        self.state[name + " mean"] = np.zeros(out, self.dtype)
        self.state[name + " var"] = np.ones(out, self.dtype)

    # ---- norm, shortcut and relu: what the two ways are about --------------------------------

    def norm(self, x, name, shortcut=None):
        """Return relu(batch_norm(x) + shortcut), and what `norm_backward` takes."""
        arguments = {
            "weight": self.params[name + " weight"], "bias": self.params[name + " bias"],
            "running_mean": self.state[name + " mean"], "running_var": self.state[name + " var"],
            "training": True, "layout": "NHWC", "return_ctx": True,
        }  # fmt: skip
        with self.clock:
            if self.fused:
                y, ctx = fastnorm.batch_norm(x, **arguments, activation="relu", shortcut=shortcut)
                return y, (ctx, None, shortcut is not None)
            y, ctx = fastnorm.batch_norm(x, **arguments)
            if shortcut is not None:
                y += shortcut
            fastnorm.activations.relu(y, out=y)
            return y, (ctx, y, shortcut is not None)

    def norm_backward(self, dy, kept, name, gradients):
        """Return gradients of x and of the shortcut; dy is overwritten."""
        ctx, y, has_shortcut = kept
        dshortcut = None
        with self.clock:
            if self.fused:
                dx, dweight, dbias, dshortcut, *_ = fastnorm.backward(dy, ctx, out=dy)
            else:
                # where y is above 0, the relu's input was
                dy = fastnorm.activations.backward(dy, y, "relu", out=dy)
                if has_shortcut:
                    dshortcut = dy
                out = None if has_shortcut else dy
                dx, dweight, dbias = fastnorm.backward(dy, ctx, out=out)
        gradients[name + " weight"], gradients[name + " bias"] = dweight, dbias
        return dx, dshortcut

    # ---- convolutions ------------------------------------------------------------------------

    def layer(self, x, name, tape, size=1, shortcut=None):
        """Return a convolution of x with norm, shortcut and relu behind it."""
        rows = patches_of(x) if size == 3 else x.reshape(-1, x.shape[-1])
        product = (rows @ self.params[name]).reshape(*x.shape[:-1], -1)
        y, kept = self.norm(product, name, shortcut)
        tape.append((name, rows, x.shape, size, kept))
        return y

    def layer_backward(self, dy, tape, gradients):
        """Return gradients of x and of the shortcut."""
        name, rows, shape, size, kept = tape.pop()
        dx, dshortcut = self.norm_backward(dy, kept, name, gradients)
        del kept
        dx = dx.reshape(len(rows), -1)
        gradients[name] = rows.T @ dx
        del rows
        if name == "stem":
            return None, None
        dx = dx @ self.params[name].T
        return from_patches(dx, shape) if size == 3 else dx.reshape(shape), dshortcut

    # ---- the network -------------------------------------------------------------------------

    def forward(self, images, labels):
        """Return the loss, and the tape."""
        tape = []
        x = self.layer(images.astype(self.dtype), "stem", tape, 3)
        for i in range(self.blocks):
            y = self.layer(x, f"{i} reduce", tape)
            y = self.layer(y, f"{i} middle", tape, 3)
            x = self.layer(y, f"{i} expand", tape, shortcut=x)
        pooled = x.mean((1, 2))
        logits = pooled @ self.params["head"] + self.params["head bias"]
        loss, dlogits = side_by_side.softmax_loss(logits, labels)
        tape.append((pooled, dlogits, x.shape))
        return loss, tape

    def backward(self, tape):
        """Return the gradients of the parameters."""
        pooled, dlogits, shape = tape.pop()
        gradients = {"head": pooled.T @ dlogits, "head bias": dlogits.sum(0)}
        dpooled = dlogits @ self.params["head"].T / self.dtype(shape[1] * shape[2])
        dx = np.empty(shape, self.dtype)
        dx[...] = dpooled[:, None, None]
        for _ in range(self.blocks):
            dy, dshortcut = self.layer_backward(dx, tape, gradients)
            dy, _ = self.layer_backward(dy, tape, gradients)
            dx, _ = self.layer_backward(dy, tape, gradients)
            dx += dshortcut
        self.layer_backward(dx, tape, gradients)
        return gradients


def load(steps, batch, seed=0):
    """Return batches of scikit-learn's 1797 digits, as NHWC in [0, 1], and labels."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(len(digits.target), batch, replace=False) for _ in range(steps)]
    images = digits.images[..., None] / 16
    return [(images[index], digits.target[index]) for index in drawn]


def main(arguments=None):
    """Train both, print the table, draw."""
    chosen = side_by_side.options(
        __doc__, arguments, steps=(60, "steps of training"), size=(256, "channels"),
        batch=(64, "images of a step"), blocks=(2, "bottleneck blocks"),
    )  # fmt: skip
    title = f"ResNet: {chosen.blocks} bottleneck blocks of {chosen.size} channels"
    return side_by_side.main(
        title,
        lambda fused, dtype: Network(chosen.size, chosen.blocks, fused, dtype),
        load(chosen.steps, chosen.batch),
        chosen,
        RATE,
    )


if __name__ == "__main__":
    main()
