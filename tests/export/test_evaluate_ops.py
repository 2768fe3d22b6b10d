"""Each operation, built by coremltools, saved, read back and evaluated, beside numpy, scipy and ONNX Runtime."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import coremltools as ct
import numpy as np
import onnxruntime
import pytest
import scipy.special
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper

from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.evaluate_ops import OPERATIONS
from snapgen_pl.export.evaluate_ops.arguments import Arguments
from tests.export.saved_program import model_of, saved

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


class Case(NamedTuple):
    name: str
    target: ct.target
    inputs: tuple[Array, ...]
    build: Callable[..., Var | Sequence[Var]]
    expected: Callable[..., object]


CASES: list[Case] = []
I16, I17, I18 = ct.target.iOS16, ct.target.iOS17, ct.target.iOS18


def case(
    name: str, build: Callable[..., Any], expected: Callable[..., Any], *inputs: Array, on: ct.target = I17
) -> None:
    CASES.append(Case(name, on, inputs, build, expected))


def onnx(op: str, *inputs: Array, **attributes: object) -> Array:
    """ONNX Runtime's result of one operation."""
    names = [f"i{number}" for number in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["o"], **attributes)],
        op,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, i.shape) for n, i in zip(names, inputs, strict=True)],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    result: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return result


# Arithmetic, comparisons, activations.
X, Y = normal(2, 3, 4), normal(3, 1)
POSITIVE = np.abs(X) + 0.1
WHOLE, OTHERS = RNG.integers(-9, 10, (2, 3)).astype(np.int32), np.array([[4, -3, 7]], np.int32)
EDGES = np.array([-2.5, -1.5, -0.5, -0.2, 0, 0.5, 1.5, 2.5], np.float32)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))  # (1 + tanh z) / 2 = sigmoid(2 z)


for name, expected in {
    "abs": np.abs,
    "exp": np.exp,
    "square": lambda x: x * x,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
    "erf": scipy.special.erf,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "identity": lambda x: x,
}.items():
    case(name, lambda x, name=name: getattr(mb, name)(x=x), expected, EDGES if name in ("round", "sign") else 3 * X)
for name, expected in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}.items():
    case(name, lambda x, y, name=name: getattr(mb, name)(x=x, y=y), expected, np.round(X, 1), np.round(Y, 1) + 0.05)
    case(f"{name} int", lambda x, y, name=name: getattr(mb, name)(x=x, y=y), expected, WHOLE, OTHERS)
case("equal where it is", lambda x: mb.equal(x=x, y=x), np.ones_like, X)
case("real_div", lambda x, y: mb.real_div(x=x, y=y), np.divide, X, Y)
case("pow", lambda x, y: mb.pow(x=x, y=y), np.power, POSITIVE, Y)
case("abs int", lambda x: mb.abs(x=x), np.abs, WHOLE)
case("sqrt", lambda x: mb.sqrt(x=x), np.sqrt, POSITIVE)
case("log", lambda x: mb.log(x=x, epsilon=0.5), lambda x: np.log(x + np.float32(0.5)), POSITIVE)
case("rsqrt", lambda x: mb.rsqrt(x=x, epsilon=0.5), lambda x: (x + 0.5) ** -0.5, POSITIVE)
case("inverse", lambda x: mb.inverse(x=x, epsilon=0.5), lambda x: 1 / (x + 0.5), POSITIVE)
case("gelu", lambda x: mb.gelu(x=x), lambda x: x * scipy.special.ndtr(x.astype(float)), 3 * X)
case("gelu tanh", lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), gelu_tanh, 3 * X)
case("gelu sigmoid", lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), lambda x: x * sigmoid(1.702 * x), 3 * X)
for name in ("and", "or", "xor"):
    case(
        f"logical_{name}",
        lambda x, y, name=name: getattr(mb, f"logical_{name}")(x=mb.greater(x=x, y=0.0), y=mb.greater(x=y, y=0.0)),
        lambda x, y, name=name: getattr(np, f"logical_{name}")(x > 0, y > 0),
        X,
        Y,
    )
case("logical_not", lambda x: mb.logical_not(x=mb.greater(x=x, y=0.0)), lambda x: x <= 0, X)
case("select", lambda x, y: mb.select(cond=mb.less(x=x, y=y), a=x, b=y), lambda x, y: np.where(x < y, x, y), X, X[::-1])
case("cast to int", lambda x: mb.cast(x=x, dtype="int32"), lambda x: np.trunc(x), EDGES)
case("cast to bool", lambda x: mb.cast(x=x, dtype="bool"), lambda x: x != 0, EDGES)
case("cast int", lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x, WHOLE)
case(
    "cast through uint16 and int8",
    lambda x: [mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="fp32") for dtype in ("uint16", "int8", "fp16")],
    lambda x: (x, x, x),
    np.array([0, 1, 127], np.int32),
)

# Products.
P, Q = normal(2, 3, 4), normal(1, 5, 4)
case("matmul", lambda x: mb.matmul(x=x, y=Q[0].T), lambda x: x @ Q[0].T, P)
case("matmul y", lambda x, y: mb.matmul(x=x, y=y, transpose_y=True), lambda x, y: x @ y.swapaxes(1, 2), P, Q)
case("matmul x", lambda x, y: mb.matmul(x=x, y=y, transpose_x=True), lambda x, y: x.swapaxes(1, 2) @ y, P, P[:1])
case("linear", lambda x: mb.linear(x=x, weight=Q[0]), lambda x: x @ Q[0].T, P)
case("linear bias", lambda x: mb.linear(x=x, weight=Q[0], bias=Q[0, :, 0]), lambda x: x @ Q[0].T + Q[0, :, 0], P)
E, F = normal(2, 3, 4, 5), normal(2, 5, 1, 6)
for name, equation in (("attention", "nchw,nwhu->nchu"), ("other letters", "abcd,adce->abce")):
    case(
        f"einsum {name}",
        lambda x, y, equation=equation: mb.einsum(values=(x, y), equation=equation),
        lambda x, y: np.stack([np.stack([x[n, :, h] @ y[n, :, 0] for h in range(4)], 1) for n in range(2)]),
        E,
        F,
    )
case(
    "einsum rank 3",
    lambda x, y: mb.einsum(values=(x, y), equation="chw,whr->chr"),
    lambda x, y: np.stack([x[:, h] @ y[:, 0] for h in range(4)], 1),
    E[0],
    F[0],
)
K, V, MASK = normal(2, 2, 6, 4), normal(2, 2, 6, 3), normal(5, 6)


def attention(query: Array, key: Array, value: Array, mask: Array | float = 0.0) -> Array:
    weights = np.exp(query @ key.swapaxes(-1, -2) / 2 + mask)  # 2 is the root of 4
    return weights / weights.sum(-1, keepdims=True) @ value


def sdpa(query: Var, key: Var, value: Var, mask: Var | None = None) -> Var:
    return mb.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)


QUERY = normal(2, 2, 5, 4)
case("attention", sdpa, attention, QUERY, K, V, on=I18)
case("attention mask", sdpa, attention, QUERY, K, V, MASK, on=I18)
case(
    "attention boolean mask",
    lambda q, k, v, m: sdpa(q, k, v, mb.greater(x=m, y=0.0)),
    lambda q, k, v, m: attention(q, k, v, np.where(m > 0, 0, -np.inf)),
    QUERY,
    K,
    V,
    np.eye(5, 6, dtype=np.float32) + (MASK > 0.5),
    on=I18,
)

# Convolutions.
IMAGE, WEIGHT, BIAS = normal(2, 4, 7, 9), normal(6, 2, 3, 2), normal(6)
case(
    "conv",
    lambda x: mb.conv(
        x=x, weight=WEIGHT, bias=BIAS, strides=[2, 1], dilations=[1, 2], groups=2, pad_type="custom", pad=[1, 2, 0, 3]
    ),
    lambda x: onnx("Conv", x, WEIGHT, BIAS, strides=[2, 1], dilations=[1, 2], group=2, pads=[1, 0, 2, 3]),
    IMAGE,
)
for pad_type, onnx_pad in (("valid", "VALID"), ("same", "SAME_UPPER"), ("same_lower", "SAME_LOWER")):
    case(
        f"conv {pad_type}",
        lambda x, pad_type=pad_type: mb.conv(x=x, weight=WEIGHT, groups=2, strides=[2, 3], pad_type=pad_type),
        lambda x, onnx_pad=onnx_pad: onnx("Conv", x, WEIGHT, group=2, strides=[2, 3], auto_pad=onnx_pad),
        IMAGE,
    )
case("conv of a line", lambda x: mb.conv(x=x, weight=WEIGHT[:, :, 0], groups=2), lambda x: line(x), IMAGE[:, :, 0])


def line(x: Array) -> Array:
    """Written out: the sum over a group's channels and a window of 2."""
    windows = sliding_window_view(x, 2, axis=2)
    halves = [
        np.einsum("bclk,ock->bol", windows[:, 2 * g : 2 * g + 2], WEIGHT[3 * g : 3 * g + 3, :, 0]) for g in (0, 1)
    ]
    return np.concatenate(halves, 1)


# Normalisations and reductions.
C4 = [normal(4) for _ in range(2)]


def standard(x: Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Array:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


case(
    "instance_norm",
    lambda x: mb.instance_norm(x=x, gamma=C4[1], beta=C4[0], epsilon=0.1),
    lambda x: onnx("InstanceNormalization", x, C4[1], C4[0], epsilon=0.1),
    IMAGE,
)
GAMMA, BETA = normal(7, 9), normal(7, 9)
case(
    "layer_norm",
    lambda x: mb.layer_norm(x=x, axes=[2, -1], gamma=GAMMA, beta=BETA, epsilon=0.1),
    lambda x: standard(x, (2, 3), 0.1) * GAMMA + BETA,
    IMAGE,
)
GAIN = normal(4, 9)
case(
    "layer_norm apart",
    lambda x: mb.layer_norm(x=x, axes=[1, 3], gamma=GAIN),
    lambda x: standard(x, (1, 3)) * GAIN[:, None],
    IMAGE,
)
for axis in (-1, 1):
    case(
        f"softmax {axis}",
        lambda x, axis=axis: mb.softmax(x=x, axis=axis),
        lambda x, axis=axis: scipy.special.softmax(x.astype(float), axis),
        30 * IMAGE,
    )
case("softmax default", lambda x: mb.softmax(x=x), lambda x: scipy.special.softmax(x, -1), IMAGE)
for name, reduction in {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "l2_norm": lambda x, axis, keepdims: np.sqrt((x**2).sum(axis, keepdims=keepdims)),
    "sum_square": lambda x, axis, keepdims: (x**2).sum(axis, keepdims=keepdims),
}.items():
    reduce_name = f"reduce_{name}"
    case(
        reduce_name,
        lambda x, op=reduce_name: [
            getattr(mb, op)(x=x, axes=[0, -1], keep_dims=False),
            getattr(mb, op)(x=x, axes=[1], keep_dims=True),
            mb.expand_dims(x=getattr(mb, op)(x=x), axes=[0]),
        ],
        lambda x, f=reduction: (
            f(x, axis=(0, 2), keepdims=False),
            f(x, axis=1, keepdims=True),
            np.asarray(f(x, axis=(0, 1, 2), keepdims=False))[None],
        ),
        normal(2, 3, 4),
    )
case("reduce_sum int", lambda x: mb.reduce_sum(x=x, axes=[1]), lambda x: x.sum(1), WHOLE)
case("reduce_max int", lambda x: mb.reduce_max(x=x, axes=[1]), lambda x: x.max(1), WHOLE)
case("reduce_mean int", lambda x: mb.reduce_mean(x=x, axes=[1]), lambda x: x.mean(1), np.array([[1, 2, 6]], np.int32))
case(
    "reduce_argmax",
    lambda x: [
        mb.reduce_argmax(x=x, axis=1),
        mb.reduce_argmax(x=x, axis=0, keep_dims=True),
        mb.cast(x=mb.reduce_argmax(x=x, output_dtype="uint16"), dtype="int32"),
    ],
    lambda x: (x.argmax(1), x.argmax(0, keepdims=True), x.argmax(-1)),
    X,
)

# Shapes.
case("reshape", lambda x: mb.reshape(x=x, shape=[4, -1]), lambda x: x.reshape(4, -1), X)
case("reshape 0", lambda x: mb.reshape(x=x, shape=[0, -1]), lambda x: x[0], X[:1, :, :], on=I17)
case("reshape 0 of the same rank", lambda x: mb.reshape(x=x, shape=[0, 4, 3]), lambda x: x.reshape(2, 4, 3), X, on=I16)
case("transpose", lambda x: mb.transpose(x=x, perm=[-1, 0, 1]), lambda x: np.moveaxis(x, -1, 0), X)
case("expand_dims", lambda x: mb.expand_dims(x=x, axes=[-1, 0]), lambda x: x[None, ..., None], X)
case(
    "squeeze",
    lambda x: [mb.squeeze(x=x, axes=[-1, 0]), mb.squeeze(x=x)],
    lambda x: (x[0, ..., 0], x[0, :, 0, :, 0]),
    normal(1, 3, 1, 4, 1),
)
case("concat", lambda x, y: mb.concat(values=(x, y), axis=-1), lambda x, y: np.concatenate((x, y), -1), X, X[..., :1])
case("split", lambda x: mb.split(x=x, num_splits=2, axis=-1), lambda x: (x[..., :2], x[..., 2:]), X)
case("split sizes", lambda x: mb.split(x=x, split_sizes=[1, 2], axis=1), lambda x: (x[:, :1], x[:, 1:]), X)
case("tile", lambda x: mb.tile(x=x, reps=[2, 1, 3]), lambda x: np.tile(x, (2, 1, 3)), X)
for mode, numpy_mode in (("reflect", "reflect"), ("replicate", "edge")):
    case(
        f"pad {mode}",
        lambda x, mode=mode: mb.pad(x=x, pad=[1, 2, 0, 3], mode=mode),
        lambda x, mode=numpy_mode: np.pad(x, ((0, 0), (1, 2), (0, 3)), mode),
        X,
    )
case(
    "pad constant",
    lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], constant_val=7.0),
    lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=7),
    X,
)
case("pixel_shuffle", lambda x: mb.pixel_shuffle(x=x, upscale_factor=2), lambda x: blocks(x, "CRD"), normal(2, 8, 3, 2))
case("depth_to_space", lambda x: mb.depth_to_space(x=x, block_size=2), lambda x: blocks(x, "DCR"), normal(2, 8, 3, 2))


def blocks(x: Array, mode: str) -> Array:
    return onnx("DepthToSpace", x, blocksize=2, mode=mode)


case(
    "upsample_nearest_neighbor",
    lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=3, scale_factor_width=2),
    lambda x: np.kron(x, np.ones((3, 2), np.float32)),
    IMAGE,
)
# Positions.
case(
    "slice_by_index",
    lambda x: mb.slice_by_index(x=x, begin=[0, 1, -3, 5], end=[2, 3, 6, 0], stride=[1, 1, 2, -2]),
    lambda x: x[0:2, 1:3, -3:6:2, 5:0:-2],
    IMAGE,
)
case(
    "slice_by_index masks",
    lambda x: mb.slice_by_index(
        x=x,
        begin=[1, 3, -2, 4],
        end=[0, 2, 3, 9],
        stride=[1, 1, 1, -1],
        begin_mask=[False, True, False, True],
        end_mask=[False, False, True, True],
        squeeze_mask=[True, False, False, False],
    ),
    lambda x: x[1, :2, -2:, ::-1],
    IMAGE,
)
AT = np.array([[3, 0], [1, 3]], np.int32)
case("gather", lambda x, i: mb.gather(x=x, indices=i, axis=-1), lambda x, i: x[..., i], X, AT)
case("gather one", lambda x: mb.gather(x=x, indices=1, axis=1), lambda x: x[:, 1], X)
case(
    "gather batches",
    lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
    lambda x, i: np.stack([one[:, at] for one, at in zip(x, i, strict=True)]),
    X,
    AT,
)
case("gather negative", lambda x, i: mb.gather(x=x, indices=i, axis=1), lambda x, i: x[:, i], X, AT[0] - 3, on=I16)
PLACES = np.array([[1, 2], [0, 0], [1, 0]], np.int32)
case("gather_nd", lambda x, i: mb.gather_nd(x=x, indices=i), lambda x, i: x[i[:, 0], i[:, 1]], X, PLACES)
case(
    "gather_nd batches",
    lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
    lambda x, i: np.stack([one[at] for one, at in zip(x, i[:, 0], strict=True)]),
    X,
    np.array([[2], [1]], np.int32),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Array]]:
    """What each case gave."""
    found: dict[str, list[Array]] = {}
    for target in (I16, I17, I18):
        cases = [one for one in CASES if one.target == target]
        found |= evaluated_together(cases, target, tmp_path_factory.mktemp(target.name))
    return found


def evaluated_together(cases: Sequence[Case], target: ct.target, folder: Path) -> dict[str, list[Array]]:
    """The cases as one program, since building one takes a second."""
    given_types = {np.dtype(np.float32): types.fp32, np.dtype(np.int32): types.int32}
    arrays = {f"c{n}_{i}": array for n, one in enumerate(cases) for i, array in enumerate(one.inputs)}
    counts = []

    def build(**inputs: Var) -> list[Var]:
        outputs = []
        for number, one in enumerate(cases):
            made = one.build(*[inputs[f"c{number}_{i}"] for i in range(len(one.inputs))])
            made = [made] if isinstance(made, Var) else list(made)
            counts.append(len(made))
            outputs += made
        return outputs

    kinds = {name: (array.shape, given_types[array.dtype]) for name, array in arrays.items()}
    package = saved(folder, model_of(kinds, build, target))
    outputs = evaluate(package, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}).outputs
    values = iter([value.numpy() for value in outputs.values()])
    return {one.name: [next(values) for _ in range(count)] for one, count in zip(cases, counts, strict=True)}


@pytest.mark.parametrize("one", CASES, ids=[one.name for one in CASES])
def test_it_is_what_others_compute(results: dict[str, list[Array]], one: Case) -> None:
    expected = one.expected(*one.inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(results[one.name]) == len(expected)
    for found, wanted in zip(results[one.name], expected, strict=True):
        wanted = np.asarray(wanted)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_all_operations_are_in_a_program_of_these_tests() -> None:
    named = {name for one in CASES for name in one.name.replace(",", "").split()}
    tested = named | {"cast", "scaled_dot_product_attention"}
    assert {op for op in OPERATIONS if not op.startswith("constexpr_")} <= tested


def call(op: str, spec_version: int = 8, **arguments: object) -> torch.Tensor:
    """An operation alone, with arguments as a program would bind them."""

    def value(argument: object) -> list[torch.Tensor | str]:
        several = argument if isinstance(argument, tuple) else (argument,)
        return [one if isinstance(one, str) else torch.as_tensor(one) for one in several]

    result = OPERATIONS[op](Arguments({name: value(one) for name, one in arguments.items()}, spec_version))
    assert isinstance(result, torch.Tensor)
    return result


def test_what_coremltools_builds_with_no_static_shape_is_numpys() -> None:
    vectors = call("matmul", x=P, y=P[0, 0], transpose_y=True), call("matmul", x=P[0, 0], y=Q[0].T, transpose_x=True)
    np.testing.assert_allclose(vectors[0], P @ P[0, 0], rtol=1e-5)
    np.testing.assert_allclose(vectors[1], P[0, 0] @ Q[0].T, rtol=1e-5)


def test_epsilons_that_a_program_leaves_out_are_core_mls() -> None:
    zero, half = np.zeros((1, 1, 1, 2), np.float32), np.zeros((1, 1, 1, 2), np.float16)
    assert call("rsqrt", x=zero)[0, 0, 0, 0].item() == pytest.approx(1e6)
    assert call("inverse", x=zero)[0, 0, 0, 0].item() == pytest.approx(1e4)
    assert call("inverse", x=half)[0, 0, 0, 0].item() == pytest.approx(1 / float(np.float16(1e-4)))
    assert call("rsqrt", x=half)[0, 0, 0, 0].item() == math.inf
    assert call("log", x=zero)[0, 0, 0, 0].item() == pytest.approx(math.log(np.float32(1e-45)))
    small = np.array([1e-3, -1e-3], np.float32).reshape(1, 1, 1, 2)
    scaled = 1 / math.sqrt(1 + 1e-5 / 1e-6)
    for op in ("layer_norm", "instance_norm"):
        assert call(op, x=small)[0, 0, 0, 0].item() == pytest.approx(scaled, rel=1e-4)


SIZES = st.integers(1, 3)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(4, 8), st.integers(4, 8)),
    st.tuples(SIZES, SIZES),
    st.tuples(SIZES, SIZES),
    st.tuples(SIZES, SIZES),
    st.sampled_from([(1, 2, 3), (2, 1, 1), (3, 1, 2)]),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.sampled_from(["custom", "valid", "same", "same_lower"]),
)
def test_convolutions_are_onnx_runtimes(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    channels: tuple[int, int, int],
    pad: list[int],
    pad_type: str,
) -> None:
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    padded = [s + (sum(pad[2 * i : 2 * i + 2]) if pad_type == "custom" else 0) for i, s in enumerate(size)]
    if "same" not in pad_type and any(e > p for e, p in zip(extents, padded, strict=True)):
        return  # the window does not fit
    groups, inside, outside = channels
    x, weight = normal(2, groups * inside, *size), normal(groups * outside, inside, *kernel)
    found = call(
        "conv",
        x=x,
        weight=weight,
        strides=np.array(strides),
        dilations=np.array(dilations),
        groups=groups,
        pad_type=pad_type,
        pad=np.array(pad),
    )
    padding: dict[str, object] = {
        "custom": {"pads": [pad[0], pad[2], pad[1], pad[3]]},
        "valid": {"auto_pad": "VALID"},
        "same": {"auto_pad": "SAME_UPPER"},
        "same_lower": {"auto_pad": "SAME_LOWER"},
    }[pad_type]
    dilated = np.zeros((*weight.shape[:2], *extents), np.float32)  # ONNX Runtime has no dilation beside SAME
    dilated[:, :, :: dilations[0], :: dilations[1]] = weight
    wanted = onnx("Conv", x, dilated, strides=list(strides), group=groups, **padding)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@given(st.data())
def test_slices_are_numpys(data: st.DataObject) -> None:
    x = np.arange(30).reshape(5, 6)
    sides = st.integers(-8, 8)
    begin, end = (data.draw(st.tuples(sides, sides)) for _ in range(2))
    stride = data.draw(st.tuples(*[st.integers(-3, 3).filter(bool)] * 2))
    open_begin, open_end = (data.draw(st.tuples(st.booleans(), st.booleans())) for _ in range(2))
    wanted = x[
        tuple(
            slice(None if ob else b, None if oe else e, s)
            for b, e, s, ob, oe in zip(begin, end, stride, open_begin, open_end, strict=True)
        )
    ]
    found = call(
        "slice_by_index",
        x=x,
        begin=np.array(begin),
        end=np.array(end),
        stride=np.array(stride),
        begin_mask=np.array(open_begin),
        end_mask=np.array(open_end),
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("reason", "op", "arguments"),
    [
        ("interleaves", "concat", {"values": (X, X), "axis": 0, "interleave": True}),
        ("indices -1 to 0 of 2 elements; from iOS 17", "gather", {"x": X, "indices": np.array([-1, 0])}),
        ("indices 2 to 2 of 2", "gather", {"x": X, "indices": 2, "validate_indices": False}),
        ("indices 0 to 3 of 3", "gather_nd", {"x": X, "indices": np.array([[0, 3], [0, 0]])}),
        ("batches are", "gather", {"x": X, "indices": AT[:1], "axis": 2, "batch_dims": 1}),
        ("resizes by 1.5 x 1", "upsample_nearest_neighbor", {"x": X, "scale_factor_height": 1.5}),
        ("resizes by 1 x 0.5", "upsample_nearest_neighbor", {"x": X, "scale_factor_width": 0.5}),
        ("sums over 'w' of the sizes", "einsum", {"values": (E, E), "equation": "nchw,nwhu->nchu"}),
        ("mode 'ERF'", "gelu", {"x": X, "mode": "ERF"}),
        ("dtype 'fp8'", "cast", {"x": X, "dtype": "fp8"}),
        ("pads 3 by 1, 3 in mode 'reflect'", "pad", {"x": X[0].T, "pad": np.array([1, 3]), "mode": "reflect"}),
        ("pad_type 'full'", "conv", {"x": IMAGE, "weight": WEIGHT, "groups": 2, "pad_type": "full"}),
        ("splits 3 into 2", "split", {"x": X, "axis": 1, "num_splits": 2}),
        ("into 3 parts of sizes", "split", {"x": X, "axis": 1, "num_splits": 3, "split_sizes": np.array([1, 2])}),
        ("do not ascend", "layer_norm", {"x": X, "axes": np.array([2, 1])}),
        ("no argument 'values'", "concat", {"axis": 0}),
        ("one argument 'x'", "relu", {}),
        ("one argument 'x'", "relu", {"x": (X, X)}),
        ("string 'a'", "relu", {"x": "a"}),
        ("'mode' is no string", "gelu", {"x": X, "mode": X}),
    ],
)
def test_what_has_no_meaning_is_refused(reason: str, op: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=reason):
        call(op, **arguments)


def test_zeros_in_a_shape_mean_another_thing_before_ios_17() -> None:
    with pytest.raises(ValueError, match="no meaning before iOS 17"):
        call("reshape", 7, x=X, shape=np.array([0, -1]))
    assert call("reshape", 8, x=X[0], shape=np.array([1, 0, -1, 0])).shape == (1, 1, 3, 4)  # the documented example
