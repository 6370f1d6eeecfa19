"""CAPI's encoder and predictor once more, from reference.md 3.8: float64 NumPy, one picture, plain loops."""

from __future__ import annotations

import math

import numpy as np
from slow_vit import gelu, linear, rms_norm, softmax


def plain_rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def turn(vector, place, largest, smallest):
    """Channel i < d/2 turns with the row, its partner i + d/2 with the column."""
    d = len(vector)
    out = np.zeros(d)
    for i in range(d):
        k = i % (d // 4)
        turns = largest * (smallest / largest) ** (k / (d // 4 - 1) if d > 4 else 0.0)
        angle = 2 * math.pi * turns * place[0 if i < d // 2 else 1]
        partner = -vector[i + d // 2] if i < d // 2 else vector[i - d // 2]
        out[i] = vector[i] * math.cos(angle) + partner * math.sin(angle)
    return out


def attention(x, context, state, name, heads, places, context_places, frequencies):
    q, k, v = (
        linear(y, state, f"{name}.{part}_proj") for part, y in (("q", x), ("k", context), ("v", context))
    )
    d = x.shape[1] // heads
    out = np.zeros_like(x)
    for head in range(heads):
        cut = slice(head * d, (head + 1) * d)
        keys = [turn(k[s, cut], context_places[s], *frequencies) for s in range(len(context))]
        for t in range(len(x)):
            query = turn(q[t, cut], places[t], *frequencies)
            weights = softmax(np.array([query @ key for key in keys]) / math.sqrt(d))
            out[t, cut] = sum(w * v[s, cut] for s, w in enumerate(weights))
    return linear(out, state, f"{name}.proj")


def block(x, context, state, name, heads, places, context_places, frequencies):
    normed = rms_norm(x, state, f"{name}.norm1")
    seen, seen_places = (normed, places) if context is None else (context, context_places)
    x = x + attention(normed, seen, state, f"{name}.attn", heads, places, seen_places, frequencies)
    hidden = gelu(linear(rms_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
    return x + linear(hidden, state, f"{name}.mlp.fc2")


def slow_capi(
    image, state, *, heads, patch, depth, predictor_depth, frequencies, visible=None, predict=None, used=None
):
    """Registers [R, D], visible patches [V, D] and predictions [P, D] at patch indices `predict`."""
    _, height, width = image.shape
    h, w = height // patch, width // patch
    filters = state["patch_embed.weight"]
    tokens, places = [], []
    for i in range(h):
        for j in range(w):
            cut = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append(np.array([(cut * f).sum() for f in filters]) + state["patch_embed.bias"])
            places.append((i / (h - 1), j / (w - 1)))
    everywhere = list(places)
    if visible is not None:
        tokens, places = [tokens[n] for n in visible], [places[n] for n in visible]
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    registers = state["register_tokens"][0]
    side = len(registers) // 4
    border = []
    for k in range(len(registers)):
        c = (k % side) / side
        corner = [(c, 0), (1, c), (1 - c, 1), (0, 1 - c)][k // side]
        border.append(tuple(low + np.array(corner) * (high - low)))
    x = np.concatenate([registers, np.stack(tokens)])
    places = border + places
    for b in range(depth):
        x = block(x, None, state, f"blocks.{b}", heads, places, None, frequencies)
    x = plain_rms(x)
    predict = range(h * w) if predict is None else predict
    queries = np.stack([state["mask_token"][0]] * len(predict))
    query_places = [everywhere[n] for n in predict]
    for b in range(depth, depth + (predictor_depth if used is None else used)):
        queries = block(queries, x, state, f"blocks.{b}", heads, query_places, places, frequencies)
    return x[: len(registers)], x[len(registers) :], plain_rms(queries)
