"""Attention, in one of four layouts that compute the same.

The Neural Engine has no fused attention. What it does well (Apple, "Deploying Transformers on the Apple Neural Engine",
2022) is one product after another on (B, channels, 1, positions): scores of a head are (B, keys, 1, queries), with
their softmax over the second dimension.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from snapgen_pl.export.limits import MAX_SIDE, MOST_HALF
from snapgen_pl.export.mil import layout
from snapgen_pl.export.mil.elementwise import combine, scaled
from snapgen_pl.export.mil.graph import Array
from snapgen_pl.export.mil.layout import Value, Var
from snapgen_pl.export.mil.lowering import Lowering, lowers
from snapgen_pl.export.options import AttentionLayout

NOT_AT_ALL = -MOST_HALF  # added to the score of what may not be attended to
KEYS = 1  # the place of keys among the inputs of ONNX's Attention


class Heads(NamedTuple):
    """What attention takes; N query heads share K heads of keys and values.

    Attributes:
        q: (B, N, Q, D), scaled already or with a scale in k.
        k: (B, K, S, D).
        v: (B, K, S, E).
        bias: added to scores, broadcastable to (B, 1, Q, S); None adds nothing.
    """

    q: Value
    k: Value
    v: Value
    bias: Value | None

    @property
    def sharing(self) -> int:
        """Query heads to a head of keys and values."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def result_shape(self) -> layout.Shape:
        """(B, N, Q, E)."""
        return (*self.q.shape[:3], self.v.shape[3])


@lowers("Attention")
def attention(lowering: Lowering) -> Value:
    """ONNX's Attention over four axes, without a cache or softcap."""
    lowering.require(softcap=0.0, qk_matmul_output_mode=0, is_causal=0)
    if any(lowering.has(place) for place in (4, 5)) or len(lowering.node.outputs) > 1:
        raise ValueError("keys and values of before, or scores given out; neither is lowered")
    q, k, v = (lowering.value(place) for place in range(3))
    if len(q.shape) != 4:
        raise ValueError(f"queries of shape {q.shape}; (B, heads, positions, width) is lowered")
    scale = lowering.attribute("scale", 1 / math.sqrt(q.shape[3]))
    # The smaller one takes the scale: keys of a prompt, shared by all heads, where there are such.
    if math.prod(k.shape) < math.prod(q.shape):
        k = scaled(lowering, k, scale)
    else:
        q = scaled(lowering, q, scale)
    bias = _bias(lowering) if lowering.has(3) else None
    return _LAYOUTS[lowering.options.attention](lowering, Heads(q, k, v, bias))


def _split(lowering: Lowering, heads: Heads) -> Value:
    """Every head by itself."""
    shared = _keys_and_values(lowering, heads)
    queries = _columns(lowering, heads.q)
    results = [
        _attend(lowering, query, *shared[head // heads.sharing], heads.bias) for head, query in enumerate(queries)
    ]
    return _joined(lowering, heads, results)


def _fold(lowering: Lowering, heads: Heads) -> Value:
    """Heads that share keys and values in one product, their queries behind each other, as far as a side goes."""
    queries = _columns(lowering, heads.q)
    most = max(1, MAX_SIDE // heads.q.shape[2])
    results: list[Var] = []
    for group, (keys, values) in enumerate(_keys_and_values(lowering, heads)):
        own = queries[group * heads.sharing : (group + 1) * heads.sharing]
        for start in range(0, len(own), most):
            part = own[start : start + most]
            result = _attend(lowering, _concat(lowering, part, axis=3), keys, values, heads.bias)
            results += _parts(lowering, result, len(part), axis=3)
    return _joined(lowering, heads, results)


def _matmul(lowering: Lowering, heads: Heads) -> Value:
    """All heads in two batched products."""
    batch, shared = heads.q.shape[0], heads.k.shape[1]
    grouped = (batch, shared, heads.sharing, *heads.q.shape[2:]) if heads.sharing > 1 and shared > 1 else heads.q.shape
    one = (1,) if len(grouped) == 5 else ()
    q = layout.view(lowering.emit, _plain(lowering, heads.q), grouped)
    k, v = (
        layout.view(lowering.emit, _plain(lowering, each), (*each.shape[:2], *one, *each.shape[2:]))
        for each in (heads.k, heads.v)
    )
    scores = lowering.emit("matmul", x=q, y=k, transpose_y=True)
    if heads.bias is not None:
        bias = layout.as_onnx(lowering.emit, heads.bias)
        scores = lowering.emit("add", x=scores, y=_with_axes(lowering, bias, len(grouped)))
    share = lowering.emit("softmax", x=scores, axis=-1)
    return layout.plain(lowering.emit("matmul", x=share, y=v), heads.result_shape)


def _sdpa(lowering: Lowering, heads: Heads) -> Value:
    """One operator of iOS 18; heads that share keys and values are queries behind each other."""
    width = heads.q.shape[3]
    # The operator divides by the root of the width itself.
    q = scaled(lowering, heads.q, math.sqrt(width))
    batch, shared = heads.k.shape[:2]
    bias = heads.bias
    positions = q.shape[2]
    query = layout.view(lowering.emit, _plain(lowering, q), (batch, shared, heads.sharing * positions, width))
    key, value = (layout.as_onnx(lowering.emit, each) for each in (heads.k, heads.v))
    mask = {}
    if bias is not None:
        var = layout.as_onnx(lowering.emit, bias)
        if bias.shape[2] > 1 and heads.sharing > 1:
            var = lowering.emit("tile", x=var, reps=[1, 1, heads.sharing, 1])
        mask = {"attn_mask": var}
    var = lowering.emit("scaled_dot_product_attention", query=query, key=key, value=value, **mask)
    return layout.plain(var, heads.result_shape)


_LAYOUTS: dict[AttentionLayout, Callable[[Lowering, Heads], Value]] = {
    "split": _split,
    "fold": _fold,
    "matmul": _matmul,
    "sdpa": _sdpa,
}


def _attend(lowering: Lowering, query_BD1Q: Var, key_BS1D: Var, value_BE1S: Var, bias: Value | None) -> Var:
    """Queries against one head of keys and values: (B, E, 1, queries)."""
    scores_BS1Q = lowering.emit("einsum", values=(key_BS1D, query_BD1Q), equation="nchw,nwhu->nchu")
    if bias is not None:
        bias_BS1Q = _bias_columns(lowering, bias, query_BD1Q.shape[3])
        scores_BS1Q = lowering.emit("add", x=scores_BS1Q, y=bias_BS1Q)
    share_BS1Q = lowering.emit("softmax", x=scores_BS1Q, axis=1)
    return lowering.emit("einsum", values=(value_BE1S, share_BS1Q), equation="nchw,nwhu->nchu")


def _keys_and_values(lowering: Lowering, heads: Heads) -> list[tuple[Var, Var]]:
    """Per head, keys (B, S, 1, D) and values (B, E, 1, S)."""
    rows = _parts(lowering, key_rows(lowering, heads.k).var, heads.k.shape[1], axis=1)
    return list(zip(rows, _columns(lowering, heads.v), strict=True))


def key_rows(lowering: Lowering, keys_BKSD: Value) -> Value:
    """Keys as einsum takes them: (B, K S, 1, D)."""
    batch, count, tokens, width = keys_BKSD.shape
    rows = layout.view(lowering.emit, _plain(lowering, keys_BKSD), (batch, count * tokens, 1, width))
    return layout.plain(rows, keys_BKSD.shape)


def _columns(lowering: Lowering, value: Value) -> list[Var]:
    """(B, heads, S, D) -> per head (B, D, 1, S)."""
    batch, count, positions, width = value.shape
    order = [axis for axis in (0, 1, 3, 2) if value.shape[axis] > 1]
    columns = layout.permuted(lowering.emit, value, order)
    return _parts(lowering, layout.view(lowering.emit, columns, (batch, count * width, 1, positions)), count, axis=1)


def _joined(lowering: Lowering, heads: Heads, results_BE1Q: Sequence[Var]) -> Value:
    shape = heads.result_shape
    var = _concat(lowering, results_BE1Q, axis=1)
    return Value(var, shape, tuple(axis for axis in (0, 1, 3, 2) if shape[axis] > 1))


def _bias(lowering: Lowering) -> Value:
    """The mask as numbers to add, (.., 1, Q or 1, S): made once for all nodes that share it."""
    name = lowering.node.inputs[3]
    # ONNX Runtime wants a row for each query; where they are one row repeated, that row is enough here.
    while (producer := lowering.producers.get(name)) is not None and producer.op == "Expand":
        name = producer.inputs[0]
    key = ("bias", name)
    if key not in lowering.shared:
        mask = lowering.values[name]
        shape = (1,) * (4 - len(mask.shape)) + tuple(mask.shape)
        if shape[1] != 1:
            raise ValueError(f"a mask of shape {shape}, with one for each head; one for all is lowered")
        lowering.shared[key] = (
            _known_bias(lowering, mask) if not isinstance(mask, Value) else _made_bias(lowering, mask)
        )
        lowering.shared[key] = layout.renamed(lowering.shared[key], shape)
    found: Value = lowering.shared[key]
    return found


def _known_bias(lowering: Lowering, mask: Array) -> Value:
    numbers = np.where(mask, 0, NOT_AT_ALL) if mask.dtype == np.bool_ else np.maximum(mask, NOT_AT_ALL)
    return layout.plain(lowering.emit("const", val=numbers.astype(lowering.dtype)), mask.shape)


def _made_bias(lowering: Lowering, mask: Value) -> Value:
    if mask.var.dtype.__name__ != "bool":
        return combine(lowering, "maximum", mask, np.asarray(NOT_AT_ALL, np.float32))
    dtype = "fp16" if lowering.options.half else "fp32"
    number = Value(lowering.emit("cast", x=mask.var, dtype=dtype), mask.shape, mask.order)
    return scaled(lowering, combine(lowering, "sub", np.asarray(1, np.float32), number), NOT_AT_ALL)


def _bias_columns(lowering: Lowering, bias: Value, queries: int) -> Var:
    """(B, S, 1, queries or 1), repeated where heads lie behind each other."""
    batch, _, own, tokens = bias.shape
    key = ("bias columns", bias.var.name, queries if own > 1 else 1)
    if key not in lowering.shared:
        order = [axis for axis in (0, 3, 2) if bias.shape[axis] > 1]
        var = layout.view(lowering.emit, layout.permuted(lowering.emit, bias, order), (batch, tokens, 1, own))
        if 1 < own < queries:
            var = _concat(lowering, [var] * (queries // own), axis=3)
        lowering.shared[key] = var
    return lowering.shared[key]


def _plain(lowering: Lowering, value: Value) -> Value:
    return layout.permuted(lowering.emit, value, layout.plain_order(value.shape))


def _with_axes(lowering: Lowering, bias: Var, rank: int) -> Var:
    """(B, 1, Q, S) -> (B, 1, 1, Q, S) where heads are grouped."""
    return bias if rank == 4 else lowering.emit("expand_dims", x=bias, axes=[1])


def _parts(lowering: Lowering, var: Var, count: int, axis: int) -> list[Var]:
    return [var] if count == 1 else list(lowering.emit("split", x=var, num_splits=count, axis=axis))


def _concat(lowering: Lowering, parts: Sequence[Var], axis: int) -> Var:
    return parts[0] if len(parts) == 1 else lowering.emit("concat", values=list(parts), axis=axis)
