"""A small convolutional network in plain NumPy, forward and backward, around fastnorm layers.

Arrays are float32 in NCHW. Every layer has `params` and `grads` (dicts with the same keys), is
called forward, and has `backward(dy)` that returns the gradient of its input.
"""

from copy import copy

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import fastnorm


class Layer:
    """A layer without parameters."""

    def __init__(self):
        self.params, self.grads = {}, {}

    def train(self, mode=True):
        """Layers that differ in training override this."""


class Conv3x3(Layer):
    """3x3 convolution with padding 1, as one matrix product over patches."""

    def __init__(self, rng, channels_in, channels_out):
        super().__init__()
        scale = np.sqrt(2 / (9 * channels_in))
        shape = (channels_out, channels_in * 9)
        self.params = {"weight": (scale * rng.standard_normal(shape)).astype(np.float32)}

    def __call__(self, x):
        n, c, h, w = x.shape
        padded = np.zeros((n, c, h + 2, w + 2), np.float32)
        padded[:, :, 1:-1, 1:-1] = x
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))  # n, c, h, w, 3, 3
        self.patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)
        self.shape = x.shape
        y = self.patches @ self.params["weight"].T
        return np.ascontiguousarray(y.reshape(n, h, w, -1).transpose(0, 3, 1, 2))

    def backward(self, dy):
        n, c, h, w = self.shape
        rows = dy.transpose(0, 2, 3, 1).reshape(n * h * w, -1)
        self.grads = {"weight": rows.T @ self.patches}
        patches = (rows @ self.params["weight"]).reshape(n, h, w, c, 3, 3)
        padded = np.zeros((n, c, h + 2, w + 2), np.float32)
        for i in range(3):
            for j in range(3):
                padded[:, :, i : i + h, j : j + w] += patches[..., i, j].transpose(0, 3, 1, 2)
        return padded[:, :, 1:-1, 1:-1]


class Bias(Layer):
    """A bias for each channel: what a network without normalization has in its place."""

    def __init__(self, channels):
        super().__init__()
        self.params = {"bias": np.zeros(channels, np.float32)}

    def __call__(self, x):
        return x + self.params["bias"].reshape(1, -1, 1, 1)

    def backward(self, dy):
        self.grads = {"bias": dy.sum((0, 2, 3))}
        return dy


class ReLU(Layer):
    """max(x, 0)."""

    def __call__(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy):
        return dy * self.positive


class AveragePool(Layer):
    """Mean over 2x2."""

    def __call__(self, x):
        rows = x[:, :, ::2] + x[:, :, 1::2]
        return (rows[..., ::2] + rows[..., 1::2]) / np.float32(4)

    def backward(self, dy):
        return np.repeat(np.repeat(dy, 2, 2), 2, 3) / np.float32(4)


class Linear(Layer):
    """Flatten, a matrix product, and a bias unless a normalizer brings its own."""

    def __init__(self, rng, features, shape, bias=True):
        super().__init__()
        self.out = shape
        weight = rng.standard_normal((int(np.prod(shape)), features)) * np.sqrt(2 / features)
        self.params = {"weight": weight.astype(np.float32)}
        if bias:
            self.params["bias"] = np.zeros(len(weight), np.float32)

    def __call__(self, x):
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        y = self.x @ self.params["weight"].T + self.params.get("bias", 0)
        return y.reshape(-1, *self.out)

    def backward(self, dy):
        dy = dy.reshape(len(dy), -1)
        self.grads = {"weight": dy.T @ self.x}
        if "bias" in self.params:
            self.grads["bias"] = dy.sum(0)
        return (dy @ self.params["weight"]).reshape(self.shape)


class Network:
    """Layers one after another, a softmax cross-entropy, and SGD with momentum."""

    def __init__(self, layers):
        self.layers = layers
        self.velocity = [{k: np.zeros_like(v) for k, v in a.params.items()} for a in layers]

    def train(self, mode=True):
        for layer in self.layers:
            layer.train(mode)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def loss_and_backward(self, x, labels):
        logits = self(x)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(len(x)), labels] + 1e-12).mean()
        p[np.arange(len(x)), labels] -= 1
        dy = p / np.float32(len(x))
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return float(loss)

    def step(self, rate, momentum=0.9):
        for layer, velocity in zip(self.layers, self.velocity, strict=True):
            for name, param in layer.params.items():
                velocity[name] *= momentum
                velocity[name] -= rate * layer.grads[name]
                param += velocity[name]


def small_convnet(rng, make_norm):
    """Two convolutions and a dense layer, a normalizer behind each (None: a bias), for 8x8 digits.

    Behind the dense layer there is one value of a channel in a sample: Batch Norm has nothing but
    the batch to average over.
    """
    layers = []
    for channels_in, channels_out in ((1, 16), (16, 32)):
        norm = make_norm(channels_out)
        layers += [Conv3x3(rng, channels_in, channels_out), norm or Bias(channels_out), ReLU()]
        layers.append(AveragePool())
    norm = make_norm(64)
    layers += [Linear(rng, 32 * 2 * 2, (64, 1, 1), norm is None), *([norm] if norm else []), ReLU()]
    return Network([*layers, Linear(rng, 64, (10,))])


def fold(network):
    """Return the network for inference: each Batch Norm in the product before it, and a bias."""
    layers = []
    for layer in network.layers:
        if isinstance(layer, (fastnorm.BatchNorm, fastnorm.BatchRenorm)):
            product = copy(layers.pop())
            weight, bias = product.params["weight"], product.params.get("bias")
            folded = fastnorm.fold_batch_norm(weight, bias, layer)
            product.params = {"weight": folded.weight}
            layer = Bias(len(folded.bias))
            layer.params = {"bias": folded.bias}
            layers.append(product)
        layers.append(layer)
    return Network(layers)
