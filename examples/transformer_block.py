"""Trains a small transformer on the text of LICENSE, by fused and by separate calls of fastnorm.

It guesses the next character. A block normalizes what it reads, and adds what it makes to the
stream. Fused, a sum and the RMS norm of what comes next are one call, which returns both:

    y, stream, ctx = fastnorm.rms_norm(made, weight, residual=stream, return_ctx=True)
    dx, dweight, *_ = fastnorm.backward(dy, ctx, ds=dstream)

Attention normalizes queries and keys, head by head, where they lie in the product that holds
queries, keys and values: views of it, which are not copied, forward and backward. What the heads
give is normalized and multiplied by a gate, as in RetNet, in one call of ``gate=``.

References
----------
Zhang, Sennrich: Root Mean Square Layer Normalization, 2019. arXiv:1910.07467
Henry et al.: Query-Key Normalization for Transformers, 2020. arXiv:2010.04245
Sun et al.: Retentive Network: A Successor to Transformer, 2023. arXiv:2307.08621
Shazeer: GLU Variants Improve Transformer, 2020. arXiv:2002.05202
"""

from pathlib import Path

import numpy as np
import side_by_side

import fastnorm
from fastnorm import activations

RATE = 0.3
HEADS = 4
TEXT = Path(__file__).parent.parent / "LICENSE"


class Network:
    """Embeddings, blocks, and a matrix product to the characters."""

    def __init__(self, characters, length, channels, blocks, fused, dtype=np.float32, seed=0):
        self.fused, self.dtype, self.blocks = fused, dtype, blocks
        self.clock = side_by_side.Clock()
        self.heads = (length, HEADS, channels // HEADS)
        self.params, self.state = {}, {}
        rng, p = np.random.default_rng(seed), self.params
        random = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
        p["embedding"] = random(characters, channels)
        p["position"] = random(length, channels)
        root = channels**0.5
        for i in range(blocks):
            p[f"{i} qkv"] = random(channels, 3 * channels) / dtype(root)
            p[f"{i} gate"] = random(channels, channels) / dtype(root)
            p[f"{i} out"] = random(channels, channels) / dtype(root)
            p[f"{i} up"] = random(channels, 4 * channels) / dtype(root)  # both halves of SwiGLU
            p[f"{i} down"] = random(2 * channels, channels) / dtype(2 * root)
            for norm in ("first", "second"):
                p[f"{i} {norm} norm"] = np.ones(channels, dtype)
            for norm in ("query", "key", "head"):
                p[f"{i} {norm} norm"] = np.ones(channels // HEADS, dtype)
        p["last norm"] = np.ones(channels, dtype)
        p["head"] = random(channels, characters) / dtype(root)

    # ---- sums, norms and gates: what the two ways are about ----------------------------------

    def add_norm(self, made, stream, name, tape):
        """Return rms_norm(made + stream), and the sum: the stream from here on."""
        weight = self.params[name]
        with self.clock:
            if self.fused and made is not None:
                y, stream, ctx = fastnorm.rms_norm(
                    made, weight, residual=stream, sum_out=made, return_ctx=True
                )
            else:
                if made is not None:
                    stream = np.add(made, stream, out=made)
                y, ctx = fastnorm.rms_norm(stream, weight, return_ctx=True)
        tape.append((ctx, made is not None))
        return y, stream

    def add_norm_backward(self, dy, dstream, name, tape, gradients):
        """Return the gradient of the sum, which is that of both parts; dy is overwritten."""
        ctx, added = tape.pop()
        with self.clock:
            if self.fused and added:
                dx, gradients[name], *_ = fastnorm.backward(dy, ctx, out=dy, ds=dstream)
            else:
                dx, gradients[name], _ = fastnorm.backward(dy, ctx, out=dy)
                if dstream is not None:
                    dx += dstream
        return dx

    def gated_norm(self, x, gate, name, tape):
        """Return rms_norm(x) * silu(gate), head by head."""
        weight, kept = self.params[name], ()
        with self.clock:
            if self.fused:
                y, ctx = fastnorm.rms_norm(x, weight, gate=gate, return_ctx=True)
            else:
                normed, ctx = fastnorm.rms_norm(x, weight, return_ctx=True)
                y = activations.silu(gate)
                y *= normed
                kept = normed, gate
        tape.append((ctx, kept))
        return y

    def gated_norm_backward(self, dy, name, tape, gradients):
        """Return gradients of x and of the gate."""
        ctx, kept = tape.pop()
        with self.clock:
            if self.fused:
                g = fastnorm.backward(dy, ctx, out=dy)
                gradients[name] = g.weight
                return g.x, g.gate
            normed, gate = kept
            normed *= dy
            dgate = activations.backward(normed, gate, "silu", out=normed)
            dy *= activations.silu(gate)
            dx, gradients[name], _ = fastnorm.backward(dy, ctx, out=dy)
        return dx, dgate

    # ---- attention ---------------------------------------------------------------------------

    def attention(self, x, i, tape):
        """Return causal attention of normalized queries and keys."""
        qkv = (x @ self.params[f"{i} qkv"]).reshape(-1, self.heads[0], 3, *self.heads[1:])
        q, k, v = (qkv[:, :, part] for part in range(3))  # views: sample, place, head, channel
        with self.clock:
            q, q_ctx = fastnorm.rms_norm(q, self.params[f"{i} query norm"], return_ctx=True)
            k, k_ctx = fastnorm.rms_norm(k, self.params[f"{i} key norm"], return_ctx=True)
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # sample, head, place, channel
        p = q @ k.swapaxes(2, 3)
        p *= self.dtype(self.heads[2] ** -0.5)
        p[:, :, np.triu(np.ones(p.shape[2:], bool), 1)] = -np.inf
        p -= p.max(-1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(-1, keepdims=True)
        mixed = np.empty((len(x) // self.heads[0], *self.heads), self.dtype)
        np.matmul(p, v, out=mixed.transpose(0, 2, 1, 3))
        gate = (x @ self.params[f"{i} gate"]).reshape(mixed.shape)
        y = self.gated_norm(mixed, gate, f"{i} head norm", tape).reshape(x.shape)
        tape.append((x, q, k, v, p, q_ctx, k_ctx, y))
        return y @ self.params[f"{i} out"]

    def attention_backward(self, dy, i, tape, gradients):
        """Return the gradient of x."""
        x, q, k, v, p, q_ctx, k_ctx, y = tape.pop()
        gradients[f"{i} out"] = y.T @ dy
        dmixed = (dy @ self.params[f"{i} out"].T).reshape(-1, *self.heads)
        dmixed, dgate = self.gated_norm_backward(dmixed, f"{i} head norm", tape, gradients)
        dgate, dmixed = dgate.reshape(x.shape), dmixed.transpose(0, 2, 1, 3)
        gradients[f"{i} gate"] = x.T @ dgate
        dx = dgate @ self.params[f"{i} gate"].T
        dqkv = np.empty((len(q), self.heads[0], 3, *self.heads[1:]), self.dtype)
        dq, dk, dv = (dqkv[:, :, part] for part in range(3))
        np.matmul(p.swapaxes(2, 3), dmixed, out=dv.transpose(0, 2, 1, 3))
        dp = dmixed @ v.swapaxes(2, 3)
        dp -= (dp * p).sum(-1, keepdims=True)
        dp *= p
        dp *= self.dtype(self.heads[2] ** -0.5)
        np.matmul(dp, k, out=dq.transpose(0, 2, 1, 3))
        np.matmul(dp.swapaxes(2, 3), q, out=dk.transpose(0, 2, 1, 3))
        with self.clock:  # over dq and dk themselves, which lie in dqkv
            gradients[f"{i} query norm"] = fastnorm.backward(dq, q_ctx, out=dq).weight
            gradients[f"{i} key norm"] = fastnorm.backward(dk, k_ctx, out=dk).weight
        dqkv = dqkv.reshape(len(x), -1)
        gradients[f"{i} qkv"] = x.T @ dqkv
        dx += dqkv @ self.params[f"{i} qkv"].T
        return dx

    # ---- SwiGLU ------------------------------------------------------------------------------

    def swiglu(self, x, i, tape):
        """Return (silu(a) * b) @ down, where a and b are the halves of x @ up."""
        a, b = np.split(x @ self.params[f"{i} up"], 2, axis=1)
        s = activations.silu(a)
        tape.append((x, a, b, s))
        return (s * b) @ self.params[f"{i} down"]

    def swiglu_backward(self, dy, i, tape, gradients):
        """Return the gradient of x."""
        x, a, b, s = tape.pop()
        gradients[f"{i} down"] = (s * b).T @ dy
        dh = dy @ self.params[f"{i} down"].T
        dboth = np.concatenate([activations.backward(dh * b, a, "silu"), dh * s], axis=1)
        gradients[f"{i} up"] = x.T @ dboth
        return dboth @ self.params[f"{i} up"].T

    # ---- the network -------------------------------------------------------------------------

    def forward(self, text, following):
        """Return the loss, and the tape."""
        tape, p = [], self.params
        stream = (p["embedding"][text] + p["position"]).reshape(text.size, -1)
        made = None  # by the branch before, and not yet in the stream
        for i in range(self.blocks):
            y, stream = self.add_norm(made, stream, f"{i} first norm", tape)
            made = self.attention(y, i, tape)
            y, stream = self.add_norm(made, stream, f"{i} second norm", tape)
            made = self.swiglu(y, i, tape)
        y, stream = self.add_norm(made, stream, "last norm", tape)
        loss, dlogits = side_by_side.softmax_loss(y @ p["head"], following.ravel())
        tape.append((text, y, dlogits))
        return loss, tape

    def backward(self, tape):
        """Return the gradients of the parameters."""
        text, y, dlogits = tape.pop()
        gradients = {"head": y.T @ dlogits}
        dy = dlogits @ self.params["head"].T
        dstream = self.add_norm_backward(dy, None, "last norm", tape, gradients)
        for i in reversed(range(self.blocks)):
            dy = self.swiglu_backward(dstream, i, tape, gradients)
            dstream = self.add_norm_backward(dy, dstream, f"{i} second norm", tape, gradients)
            dy = self.attention_backward(dstream, i, tape, gradients)
            dstream = self.add_norm_backward(dy, dstream, f"{i} first norm", tape, gradients)
        dstream = dstream.reshape(*text.shape, -1)
        gradients["position"] = dstream.sum(0)
        gradients["embedding"] = np.zeros_like(self.params["embedding"])
        np.add.at(gradients["embedding"], text, dstream)
        return gradients


def load(steps, batch, length, seed=0):
    """Return batches of pieces of the text, and of what follows each character; how many differ."""
    letters, text = np.unique(list(TEXT.read_text()), return_inverse=True)
    rng, places = np.random.default_rng(seed), np.arange(length)
    starts = rng.integers(len(text) - length, size=(steps, batch, 1)) + places
    return [(text[index], text[index + 1]) for index in starts], len(letters)


def main(arguments=None):
    """Train both, print the table, draw."""
    chosen = side_by_side.options(
        __doc__, arguments, steps=(60, "steps of training"), size=(256, "channels"),
        batch=(16, "pieces of text in a step"), length=(64, "characters of a piece"),
        blocks=(2, "blocks"),
    )  # fmt: skip
    batches, characters = load(chosen.steps, chosen.batch, chosen.length)
    title = f"transformer: {chosen.blocks} blocks of {chosen.size} channels"
    return side_by_side.main(
        title,
        lambda fused, dtype: Network(
            characters, chosen.length, chosen.size, chosen.blocks, fused, dtype
        ),
        batches,
        chosen,
        RATE,
    )


if __name__ == "__main__":
    main()
