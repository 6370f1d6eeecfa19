"""The vision transformer once more, from reference.md alone: float64 NumPy, one picture, plain loops."""

from __future__ import annotations

import math

import numpy as np

ERF = np.vectorize(math.erf)


def layer_norm(x, state, name, eps):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def rms_norm(x, state, name, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * state[f"{name}.weight"]


def linear(x, state, name):
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def gelu(x):
    return x * 0.5 * (1 + ERF(x / math.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def patchify(image, state, patch):
    """[C, H, W] -> [h, w, D]: each patch's dot product with each filter."""
    _, height, width = image.shape
    filters = state["patch_embed.proj.weight"]
    out = np.zeros((height // patch, width // patch, len(filters)))
    for i in range(height // patch):
        for j in range(width // patch):
            cut = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            out[i, j] = [(cut * f).sum() for f in filters]
    return out + state["patch_embed.proj.bias"]


def coordinate(index, count, mode, other):
    divide = {"separate": count, "max": max(count, other), "min": min(count, other)}[mode]
    return 2 * (index + 0.5) / divide - 1


def turn(vector, down, across, base=100.0):
    """Rotates each pair (i, i + d/2) by its angle: first the rows' d/4 angles, then the columns'."""
    d = len(vector)
    out = vector.copy()
    for i in range(d // 2):
        place, k = (down, i) if i < d // 4 else (across, i - d // 4)
        angle = 2 * math.pi * place / base ** (4 * k / d)
        a, b = vector[i], vector[i + d // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(x, state, name, heads, places, masked_key_bias):
    """x [T, D]; places: (down, across) of each token or None."""
    tokens, width = x.shape
    d = width // heads
    qkv = x @ state[f"{name}.qkv.weight"].T
    if f"{name}.qkv.bias" in state:
        bias = state[f"{name}.qkv.bias"].copy()
        if masked_key_bias:
            bias[width : 2 * width] = 0
        qkv = qkv + bias
    out = np.zeros((tokens, width))
    rows = np.zeros((heads, tokens, tokens))
    for head in range(heads):
        cut = slice(head * d, (head + 1) * d)
        q, k, v = (qkv[:, n * width : (n + 1) * width][:, cut].copy() for n in range(3))
        for t, place in enumerate(places):
            if place is not None:
                q[t], k[t] = turn(q[t], *place), turn(k[t], *place)
        for t in range(tokens):
            rows[head, t] = softmax(np.array([q[t] @ k[s] for s in range(tokens)]) / math.sqrt(d))
            out[t, cut] = sum(rows[head, t, s] * v[s] for s in range(tokens))
    return linear(out, state, f"{name}.proj"), rows


def feed_forward(x, state, name):
    if f"{name}.w1.weight" in state:
        gate = silu(linear(x, state, f"{name}.w1"))
        return linear(gate * linear(x, state, f"{name}.w2"), state, f"{name}.w3")
    return linear(gelu(linear(x, state, f"{name}.fc1")), state, f"{name}.fc2")


def slow_vit(
    image,
    state,
    *,
    heads,
    patch,
    mask=None,
    norm="layernorm",
    masked_key_bias=True,
    coordinates="separate",
    positions=None,
    depth,
):
    """Prenorm and normed tokens [T, D], and the last block's attention [heads, T, T].

    positions: learned positions already resampled, [1 + N, D], in place of rotation.
    """
    eps = {"layernorm": 1e-6, "layernorm_bf16": 1e-5}.get(norm)

    def normed(x, name):
        return rms_norm(x, state, name) if norm == "rmsnorm" else layer_norm(x, state, name, eps)

    grid = patchify(image, state, patch)
    h, w, _ = grid.shape
    tokens = [state["cls_token"][0, 0]]
    places = [None]
    for i in range(h):
        for j in range(w):
            hidden = mask is not None and mask[i * w + j]
            tokens.append(state["mask_token"][0] if hidden else grid[i, j])
            places.append((coordinate(i, h, coordinates, w), coordinate(j, w, coordinates, h)))
    x = np.stack(tokens)
    if positions is not None:
        x = x + positions
        places = [None] * len(places)
    if "storage_tokens" in state:
        registers = state["storage_tokens"][0]
        x = np.concatenate([x[:1], registers, x[1:]])
        places = [None] * (1 + len(registers)) + places[1:]
    rows = None
    for b in range(depth):
        added, rows = attention(
            normed(x, f"blocks.{b}.norm1"), state, f"blocks.{b}.attn", heads, places, masked_key_bias
        )
        x = x + added * state.get(f"blocks.{b}.ls1.gamma", 1.0)
        added = feed_forward(normed(x, f"blocks.{b}.norm2"), state, f"blocks.{b}.mlp")
        x = x + added * state.get(f"blocks.{b}.ls2.gamma", 1.0)
    return x, normed(x, "norm"), rows


def cubic(t, a):
    """Keys' cubic kernel with parameter a."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    if t < 2:
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return 0.0


def resample_weights(source, target, factor, antialias):
    """[target, source] weights of bicubic resampling along one axis.

    With antialiasing: a = -0.5, the kernel is widened when shrinking and renormalised at the borders
    (as Pillow). Without: a = -0.75, four taps, border samples repeated.
    """
    weights = np.zeros((target, source))
    step = 1 / factor
    for i in range(target):
        centre = (i + 0.5) * step
        if antialias:
            wide = max(step, 1.0)
            for j in range(source):
                weights[i, j] = cubic((j + 0.5 - centre) / wide, -0.5)
            weights[i] /= weights[i].sum()
        else:
            first = math.floor(centre - 0.5)
            for j in range(first - 1, first + 3):
                weights[i, min(max(j, 0), source - 1)] += cubic(centre - 0.5 - j, -0.75)
    return weights


def slow_positions(stored, height, width, interpolation):
    """[1, 1 + M^2, D] -> [1 + height * width, D]."""
    side = math.isqrt(stored.shape[1] - 1)
    grid = stored[0, 1:].reshape(side, side, -1)
    if (height, width) != (side, side):
        antialias = interpolation == "size"
        extra = 0.0 if antialias else 0.1
        down = resample_weights(side, height, (height + extra) / side, antialias)
        across = resample_weights(side, width, (width + extra) / side, antialias)
        grid = np.einsum("ir,jc,rcd->ijd", down, across, grid)
    return np.concatenate([stored[0, :1], grid.reshape(height * width, -1)])
