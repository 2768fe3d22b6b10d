"""Every operator that is lowered, against ONNX Runtime: shapes, attributes and layouts as hypothesis finds them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto
from onnx.helper import make_node

from snapgen_pl.export.limits import LEAST_HALF, MOST_HALF
from snapgen_pl.export.mil import RULES, OnnxGraph, lower, read_graph
from snapgen_pl.export.mil.elementwise import BINARY, UNARY
from snapgen_pl.export.mil.lowering import Lowering
from snapgen_pl.export.options import Options
from tests.export.lowered import FLOAT32, Array, check, graph_file, package

# A conversion costs a tenth of a second: few examples, of many kinds.
few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
more = settings(few, max_examples=30)
seeds = st.integers(0, 2**16)
LOGICAL = ("And", "Or", "Xor")


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shapes(least: int = 1, most: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.sampled_from([1, 2, 3, 5]), min_size=least, max_size=most).map(tuple)


def node(op: str, inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("y",), **attributes: Any) -> NodeProto:
    name = f"the_{op}" if outputs[0] == "y" else f"{op}_{outputs[0]}"
    return make_node(op, list(inputs), list(outputs), name=name, **attributes)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


@pytest.mark.parametrize("op", [op for op in UNARY if op != "Not"])
def test_functions_of_one_tensor(op: str) -> None:
    x = numbers(0, 2, 3, 5)
    check([node(op)], {"x": np.abs(x) + 0.1 if op == "Sqrt" else x})


@pytest.mark.parametrize("op", ["Reciprocal", "Log", "Neg", "Identity"])
def test_functions_that_have_an_epsilon_in_mil(op: str) -> None:
    # Small numbers: an epsilon of 1e-4, MIL's default for 1 / x, would show.
    check([node(op)], {"x": np.abs(numbers(0, 2, 3)) * 1e-3 + 1e-4}, tolerance=1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_the_one_that_is_asked_for(approximate: str) -> None:
    check([node("Gelu", approximate=approximate)], {"x": 3 * numbers(1, 4, 33)}, tolerance=1e-6)


def test_the_inverse_of_a_root_is_one_operator_without_an_epsilon() -> None:
    x = np.abs(numbers(2, 3, 4)) * 1e-6 + 1e-8
    found = check([node("Sqrt", outputs=["r"]), node("Reciprocal", ["r"])], {"x": x}, tolerance=1e-6)
    assert "rsqrt" in {each.type for each in found.extremes}


def test_x_sigmoid_x_is_one_operator_from_either_side() -> None:
    for inputs in (["x", "s"], ["s", "x"]):
        found = check([node("Sigmoid", outputs=["s"]), node("Mul", inputs)], {"x": numbers(3, 2, 8)})
        assert [each.type for each in found.extremes if each.type != "identity"] == ["silu"]


def test_a_product_with_the_sigmoid_of_another_tensor_stays_one() -> None:
    inputs = {"x": numbers(4, 2, 8), "z": numbers(5, 2, 8)}
    found = check([node("Sigmoid", ["z"], ["s"]), node("Mul", ["x", "s"])], inputs)
    assert "silu" not in {each.type for each in found.extremes}


@pytest.mark.parametrize("op", [op for op in BINARY if op not in LOGICAL])
@few
@given(shape=shapes(), kept=st.lists(st.booleans(), min_size=4, max_size=4), dropped=st.integers(0, 3), seed=seeds)
def test_functions_of_two_tensors_broadcast_as_in_onnx(
    op: str, shape: tuple[int, ...], kept: list[bool], dropped: int, seed: int
) -> None:
    other = tuple(size if keep else 1 for size, keep in zip(shape, kept, strict=False))[min(dropped, len(shape) - 1) :]
    x, z = np.abs(numbers(seed, *shape)) + 0.5, np.abs(numbers(seed + 1, *other)) + 0.5
    nodes = [node(op, ["x", "z"], ["c"]), node("Cast", ["c"], to=1)] if op in ("Equal", "Greater", "GreaterOrEqual",
             "Less", "LessOrEqual") else [node(op, ["x", "z"])]  # fmt: skip
    check(nodes, {"x": x, "z": z})
    check(nodes, {"x": x}, {"z": z})


@pytest.mark.parametrize("op", LOGICAL)
def test_logic(op: str) -> None:
    zero = np.zeros((), np.float32)
    nodes = [node("Greater", ["x", "zero"], ["a"]), node("Less", ["z", "zero"], ["b"]), node("Not", ["b"], ["n"]),
             node(op, ["a", "n"], ["c"]), node("Cast", ["c"], to=1)]  # fmt: skip
    check(nodes, {"x": numbers(0, 3, 4), "z": numbers(1, 3, 1)}, {"zero": zero})


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.5])
def test_powers(exponent: float) -> None:
    check([node("Pow", ["x", "e"])], {"x": np.abs(numbers(0, 3, 4)) + 0.1}, {"e": np.array(exponent, np.float32)})


def test_where_takes_from_either_tensor() -> None:
    nodes = [node("Greater", ["x", "zero"], ["c"]), node("Where", ["c", "x", "z"])]
    check(nodes, {"x": numbers(0, 2, 3, 4), "z": numbers(1, 2, 3, 4)}, {"zero": np.zeros((), np.float32)})


def test_clip_has_two_bounds_or_one() -> None:
    low, high = np.array(-0.5, np.float32), np.array(0.25, np.float32)
    check([node("Clip", ["x", "low", "high"])], {"x": numbers(0, 3, 4)}, {"low": low, "high": high})
    check([node("Clip", ["x", "", "high"])], {"x": numbers(0, 3, 4)}, {"high": high})


MOVING = ["Transpose", "Reshape", "Add", "Mul", "Softmax", "MatMul", "Squeeze", "Slice", "Split"]


@more
@given(data=st.data(), shape=shapes(2, 4), seed=seeds)
def test_any_way_through_transposes_and_reshapes_moves_what_onnx_moves(
    data: st.DataObject, shape: tuple[int, ...], seed: int
) -> None:
    nodes, constants, name, original = [], {}, "x", shape
    for step in range(data.draw(st.integers(1, 6))):
        following = f"v{step}"
        kind = data.draw(st.sampled_from(MOVING))
        long = [axis for axis, size in enumerate(shape) if size > 1]
        if kind == "Transpose" and shape:
            perm = data.draw(st.permutations(range(len(shape))))
            nodes.append(node(kind, [name], [following], perm=list(perm)))
            shape = tuple(shape[axis] for axis in perm)
        elif kind in ("Reshape", "Squeeze"):
            shape = data.draw(factored(int(np.prod(shape)))) if kind == "Reshape" else tuple(s for s in shape if s > 1)
            constants[f"s{step}"] = whole(*shape)
            nodes.append(node("Reshape", [name, f"s{step}"], [following]))
        elif kind == "MatMul" and len(shape) > 1:
            constants[f"w{step}"] = numbers(seed + step, shape[-1], width := data.draw(st.sampled_from([1, 4, 7])))
            nodes.append(node(kind, [name, f"w{step}"], [following]))
            shape = (*shape[:-1], width)
        elif kind == "Slice" and long:
            axis = data.draw(st.sampled_from(long))
            constants |= {f"b{step}": whole(1), f"e{step}": whole(shape[axis]), f"a{step}": whole(axis)}
            nodes.append(node(kind, [name, f"b{step}", f"e{step}", f"a{step}"], [following]))
            shape = tuple(size - 1 if place == axis else size for place, size in enumerate(shape))
        elif kind == "Split" and long:
            axis = data.draw(st.sampled_from(long))
            constants[f"p{step}"] = whole(1, shape[axis] - 1)
            nodes.append(node(kind, [name, f"p{step}"], [f"first{step}", following], axis=axis))
            shape = tuple(size - 1 if place == axis else size for place, size in enumerate(shape))
        elif kind == "Softmax" and long:
            nodes.append(node(kind, [name], [following], axis=data.draw(st.sampled_from(long))))
        else:
            part = [size if data.draw(st.booleans()) else 1 for size in shape]
            constants[f"c{step}"] = numbers(seed + step, *part)
            nodes.append(node("Add" if kind == "Add" else "Mul", [name, f"c{step}"], [following]))
        name = following
    check([*nodes, node("Identity", [name])], {"x": numbers(seed, *original)}, constants)


@st.composite
def factored(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A shape of so many elements."""
    shape: list[int] = []
    while size > 1 and len(shape) < 4:
        factor = draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0]))
        shape.append(factor)
        size //= factor
    shape += [size] if size > 1 else []
    for _ in range(draw(st.integers(0, 5 - len(shape)))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return tuple(shape) or (1,)


def test_what_attention_moves_in_onnx_moves_nothing_in_mil() -> None:
    """(B, C, H, W) -> tokens -> heads -> tokens -> (B, C, H, W), with products on the way."""
    constants = {"tokens": whole(1, 30, 64), "heads": whole(1, 30, 4, 16), "image": whole(1, 5, 6, 64),
                 "w": numbers(1, 64, 64), "gain": 1 + numbers(2, 16)}  # fmt: skip
    nodes = [node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]), node("Reshape", ["a", "tokens"], ["b"]),
             node("MatMul", ["b", "w"], ["c"]), node("Reshape", ["c", "heads"], ["d"]),
             node("Transpose", ["d"], ["e"], perm=[0, 2, 1, 3]),
             node("RMSNormalization", ["e", "gain"], ["f"], epsilon=1e-6),
             node("Transpose", ["f"], ["g"], perm=[0, 2, 1, 3]), node("Reshape", ["g", "tokens"], ["h"]),
             node("Add", ["h", "b"], ["i"]), node("Reshape", ["i", "image"], ["j"]),
             node("Transpose", ["j"], perm=[0, 3, 1, 2])]  # fmt: skip
    found = check(nodes, {"x": numbers(0, 1, 64, 5, 6)}, constants)
    assert "transpose" not in {each.type for each in found.extremes}


def test_unsqueeze_expand_flatten_and_pad() -> None:
    check([node("Unsqueeze", ["x", "axes"])], {"x": numbers(0, 2, 3)}, {"axes": whole(0, -1)})
    check([node("Squeeze", ["x", "axes"])], {"x": numbers(0, 1, 3, 1)}, {"axes": whole(-1)})
    check([node("Squeeze")], {"x": numbers(0, 1, 3, 1)})
    check([node("Expand", ["x", "shape"])], {"x": numbers(0, 3, 1, 2)}, {"shape": whole(2, 1, 4, 1)})
    check([node("Flatten", axis=2)], {"x": numbers(0, 2, 3, 4, 5)})
    pads = {"pads": whole(1, 0, 2, 3), "fill": np.array(7, np.float32)}
    check([node("Pad", ["x", "pads", "fill"])], {"x": numbers(0, 3, 4)}, pads)


@few
@given(axis=st.integers(-3, 2), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=seeds)
def test_split_and_concat_are_inverse(axis: int, sizes: list[int], seed: int) -> None:
    shape = [2, 3, 5]
    shape[axis] = sum(sizes)
    names = [f"p{place}" for place in range(len(sizes))]
    nodes = [node("Split", ["x", "sizes"], names, axis=axis), node("Concat", names, axis=axis)]
    x = numbers(seed, *shape)
    found = check(nodes, {"x": x}, {"sizes": whole(*sizes)})
    np.testing.assert_array_equal(found.outputs["y"].numpy(), x)


def test_concat_of_a_variable_a_constant_and_another_layout() -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("Concat", ["t", "c", "z"], axis=1)]
    check(nodes, {"x": numbers(0, 2, 4, 3), "z": numbers(1, 2, 1, 4)}, {"c": numbers(2, 2, 2, 4)})


@more
@given(
    channels=st.sampled_from([(4, 6, 1), (4, 6, 2), (6, 6, 6), (3, 9, 3)]),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 4)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    bias=st.booleans(),
    seed=seeds,
)
def test_convolutions(
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    pads: list[int],
    bias: bool,
    seed: int,
) -> None:
    given_, made, groups = channels
    attributes = {"strides": [stride, stride], "dilations": [dilation, dilation], "pads": pads, "group": groups}
    constants = {"w": numbers(seed, made, given_ // groups, *kernel), "b": numbers(seed + 1, made)}
    nodes = [node("Conv", ["x", "w", *(["b"] if bias else [])], kernel_shape=list(kernel), **attributes)]
    check(nodes, {"x": numbers(seed + 2, 2, given_, 9, 8)}, constants)


@few
@given(transposed=st.booleans(), rows=st.sampled_from([1, 3]), alpha=st.sampled_from([1.0, 0.5]), seed=seeds)
def test_gemm(transposed: bool, rows: int, alpha: float, seed: int) -> None:
    weight = numbers(seed, 6, 4) if transposed else numbers(seed, 4, 6)
    nodes = [node("Gemm", ["x", "w", "b"], transB=int(transposed), alpha=alpha, beta=2.0)]
    check(nodes, {"x": numbers(seed + 1, rows, 4)}, {"w": weight, "b": numbers(seed + 2, 6)})


@pytest.mark.parametrize("shape", [(1, 4), (2, 3, 4), (2, 3, 5, 4), (4, 1, 4)])
def test_products_with_weights_on_the_right(shape: tuple[int, ...]) -> None:
    check([node("MatMul", ["x", "w"])], {"x": numbers(0, *shape)}, {"w": numbers(1, 4, 6)})


def test_products_with_weights_on_the_left_and_of_two_variables() -> None:
    check([node("MatMul", ["w", "x"])], {"x": numbers(0, 2, 4, 5)}, {"w": numbers(1, 6, 4)})
    check([node("MatMul", ["x", "z"])], {"x": numbers(0, 2, 3, 4), "z": numbers(1, 2, 4, 5)})


@few
@given(shape=st.sampled_from([(1, 6, 32), (2, 5, 7), (3, 8)]), gain=st.booleans(), seed=seeds)
def test_norms_over_the_last_axis(shape: tuple[int, ...], gain: bool, seed: int) -> None:
    constants = {"g": 1 + numbers(seed, shape[-1]) * gain, "b": numbers(seed + 1, shape[-1]) * gain}
    x = {"x": 3 + 2 * numbers(seed + 2, *shape)}
    check([node("LayerNormalization", ["x", "g", "b"], epsilon=1e-3)], x, constants)
    check([node("RMSNormalization", ["x", "g"], epsilon=1e-3)], x, constants)


@few
@given(batch=st.integers(1, 2), groups=st.sampled_from([1, 2, 8]), width=st.sampled_from([6, 40]), seed=seeds)
def test_group_norm(batch: int, groups: int, width: int, seed: int) -> None:
    constants = {"g": 1 + numbers(seed, 8), "b": numbers(seed + 1, 8)}
    nodes = [node("GroupNormalization", ["x", "g", "b"], num_groups=groups, epsilon=1e-3)]
    check(nodes, {"x": 3 + 2 * numbers(seed + 2, batch, 8, 4, width)}, constants)


REDUCTIONS = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"]


@pytest.mark.parametrize("op", REDUCTIONS)
@few
@given(axes=st.sets(st.integers(0, 2), min_size=1), keep=st.booleans(), seed=seeds)
def test_reductions(op: str, axes: set[int], keep: bool, seed: int) -> None:
    nodes = [node(op, ["x", "axes"], keepdims=int(keep))]
    check(nodes, {"x": numbers(seed, 2, 3, 4)}, {"axes": whole(*axes)})


@few
@given(axis=st.integers(-3, 2), keep=st.booleans(), seed=seeds)
def test_the_place_of_the_largest(axis: int, keep: bool, seed: int) -> None:
    nodes = [node("ArgMax", outputs=["i"], axis=axis, keepdims=int(keep)), node("Cast", ["i"], to=1)]
    check(nodes, {"x": numbers(seed, 3, 4, 5)})


def test_looking_up() -> None:
    table, ids = numbers(0, 7, 4), {"x": np.array([[3, 0, 6]], np.int32)}
    check([node("Gather", ["table", "x"])], ids, {"table": table})
    check([node("Gather", ["x", "places"], axis=1)], {"x": numbers(1, 2, 5)}, {"places": whole(4, -1, 0)})
    check([node("GatherND", ["x", "places"])], {"x": numbers(1, 2, 5, 3)}, {"places": whole(1, 4, 0, 2).reshape(2, 2)})


def test_enlarging_by_neighbours_and_patches_side_by_side() -> None:
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    scales = {"scales": np.array([1, 1, 2, 3], np.float32)}
    check([node("Resize", ["x", "", "scales"], **attributes)], {"x": numbers(0, 2, 3, 4, 5)}, scales)
    sizes = {"size": whole(6, 4), "block": whole(2, 2)}
    check([node("Col2Im", ["x", "size", "block"], strides=[2, 2])], {"x": numbers(0, 2, 12, 6)}, sizes)
    for mode in ("CRD", "DCR"):
        check([node("DepthToSpace", blocksize=2, mode=mode)], {"x": numbers(0, 2, 12, 3, 5)})


LAYOUTS = [Options(False, layout, 18 if layout == "sdpa" else 17) for layout in ("split", "fold", "matmul", "sdpa")]


@pytest.mark.parametrize("options", LAYOUTS, ids=lambda options: options.attention)
@few
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (4, 1), (6, 2)]),
    mask=st.sampled_from(["none", "keys", "queries", "numbers"]),
    scale=st.sampled_from([None, 0.3]),
    batch=st.integers(1, 2),
    seed=seeds,
)
def test_attention_in_every_layout(
    options: Options, heads: tuple[int, int], mask: str, scale: float | None, batch: int, seed: int
) -> None:
    own, shared = heads
    inputs = {"q": numbers(seed, batch, own, 5, 8), "k": numbers(seed + 1, batch, shared, 6, 8),
              "v": numbers(seed + 2, batch, shared, 6, 4)}  # fmt: skip
    constants, nodes, names = {"half": np.array(0.5, np.float32)}, [], ["q", "k", "v"]
    if mask == "numbers":
        constants["m"], names = np.triu(np.full((5, 6), -1e9, np.float32), 2)[None, None], [*names, "m"]
    elif mask != "none":
        # ONNX Runtime wants as many rows of a mask as there are queries; equal ones are made of one.
        inputs["m"] = np.random.default_rng(seed).random((batch, 1, 1 if mask == "keys" else 5, 6), np.float32)
        inputs["m"][..., 0] = 1  # a token at least
        constants["rows"] = whole(batch, 1, 5, 6)
        nodes, names = [node("Greater", ["m", "half"], ["mb"]), node("Expand", ["mb", "rows"], ["me"])], [*names, "me"]
    attributes = {} if scale is None else {"scale": scale}
    check([*nodes, node("Attention", names, **attributes)], inputs, constants, options)


def test_the_keys_of_many_layers_are_moved_once() -> None:
    """(B, S, layers x width) -> keys of each, by a transpose and a split, as einsum takes them."""
    constants = {"w": numbers(0, 12, 24), "heads": whole(2, 6, 3, 8), "sizes": whole(1, 1, 1)}
    nodes = [node("MatMul", ["c", "w"], ["k"]), node("Reshape", ["k", "heads"], ["h"]),
             node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
             node("Split", ["t", "sizes"], ["k0", "k1", "k2"], axis=1),
             *(node("Attention", ["q", f"k{layer}", "v"], [f"y{layer}"]) for layer in range(3))]  # fmt: skip
    inputs = {"c": numbers(1, 2, 6, 12), "q": numbers(2, 2, 4, 5, 8), "v": numbers(3, 2, 1, 6, 4)}
    found = check(nodes, inputs, constants, outputs=("y0", "y1", "y2"))
    # What is given to the product, and once for all keys; then queries, values and results of each as they are given.
    assert [each.type for each in found.extremes].count("transpose") == 1 + 1 + 3 * 3


@pytest.mark.parametrize(("positions", "products"), [(4000, 2), (6000, 4)])
def test_queries_lie_behind_each_other_as_far_as_a_side_goes(positions: int, products: int) -> None:
    inputs = {"q": numbers(0, 1, 4, positions, 8), "k": numbers(1, 1, 1, 3, 8), "v": numbers(2, 1, 1, 3, 8)}
    found = check([node("Attention", ["q", "k", "v"])], inputs, options=Options(False, "fold"))
    assert [each.type for each in found.extremes].count("einsum") == products


@pytest.mark.parametrize(("side", "moved"), [(128, True), (130, False)])
def test_positions_lie_in_a_row_as_far_as_a_side_goes(tmp_path: Any, side: int, moved: bool) -> None:
    constants = {"w": numbers(1, 3, 2)}
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]), node("MatMul", ["t", "w"], ["p"]),
             node("Transpose", ["p"], perm=[0, 3, 1, 2])]  # fmt: skip
    x = {"x": numbers(0, 1, 3, side, side)}
    check(nodes, x, constants)
    read = package(graph_file(tmp_path, nodes, x, constants))
    (shape,) = (made.shape for each in read.operations if each.type == "conv" for made in each.outputs.values())
    assert shape == ((1, 2, 1, side**2) if moved else (1, 2, side, side))


def test_what_is_looked_up_for_tokens_lies_channels_first_at_once() -> None:
    constants = {"table": numbers(0, 9, 8), "a": numbers(1, 8, 8), "b": numbers(2, 8, 8)}
    nodes = [node("Gather", ["table", "x"], ["e"]), node("MatMul", ["e", "a"], ["m"]), node("Add", ["e", "m"], ["n"]),
             node("MatMul", ["n", "b"], ["o"]), node("Add", ["n", "o"])]  # fmt: skip
    found = check(nodes, {"x": np.array([[3, 0, 6]], np.int32)}, constants)
    assert [each.type for each in found.extremes].count("transpose") == 2  # and as ONNX has it at the end


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_constants_of_float16_are_numbers_that_the_neural_engine_takes(values: list[float]) -> None:
    lowering = Lowering(OnnxGraph((), {}, (), (), {}), Options(), {}, {})
    given_ = np.array(values, np.float32)
    made = lowering.cast_array(given_)
    assert made.dtype == np.float16
    assert np.isfinite(made).all()
    assert not np.any((made != 0) & (np.abs(made) < LEAST_HALF))
    assert np.all(np.abs(made[np.isinf(given_)]) == MOST_HALF)
    near = np.abs(given_) < 65504
    error = np.abs(made[near].astype(np.float64) - given_[near])
    assert np.all(error <= np.maximum(LEAST_HALF / 2, np.abs(given_[near]) * 2.0**-11))
    # In float32 and in the island they stay what they are.
    np.testing.assert_array_equal(lowering.cast_array(given_, island=True)[near], given_[near])


def test_float16_is_everywhere_but_in_the_timesteps_island(tmp_path: Any) -> None:
    inputs = {"timestep": np.array([0.999], np.float32), "x": numbers(0, 1, 8)}
    constants = {"f": np.array([[1000.0, 100.0, 10.0, 1.0]], np.float32), "w": numbers(1, 8, 8)}
    nodes = [node("Mul", ["timestep", "f"], ["angle"]), node("Cos", ["angle"], ["c"]), node("Sin", ["angle"], ["s"]),
             node("Concat", ["c", "s"], ["e"], axis=1), node("MatMul", ["e", "w"], ["t"]),
             node("Add", ["t", "x"])]  # fmt: skip
    read = package(graph_file(tmp_path, nodes, inputs, constants), Options(half=True))
    types = {operation.type: {made.dtype for made in operation.outputs.values()} for operation in read.operations}
    assert read.inputs["timestep"].dtype == "FLOAT32"
    assert read.inputs["x"].dtype == "FLOAT16"
    assert types["cos"] == types["sin"] == types["concat"] == types["mul"] == {"FLOAT32"}
    assert types["linear"] == types["add"] == {"FLOAT16"}
    assert read.outputs["y"].dtype == "FLOAT16"


def test_an_operator_without_a_lowering_is_named_with_its_node(tmp_path: Any) -> None:
    file = graph_file(tmp_path, [node("Mish")], {"x": numbers(0, 3)}, {})
    assert "Mish" not in RULES
    with pytest.raises(ValueError, match="Mish 'the_Mish': there is no lowering for Mish"):
        lower(read_graph(file), FLOAT32)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("Pad", ["x", "pads"], mode="reflect")], "Pad 'the_Pad': mode is 'reflect'; only 'constant' is lowered"),
        ([node("Col2Im", ["x", "size", "block"])], "Col2Im 'the_Col2Im': "),
        ([node("Slice", ["x", "last", "first", "axis", "back"])], "Slice 'the_Slice': step -1"),
    ],
    ids=["mode", "overlap", "backwards"],
)
def test_what_core_ml_cannot_have_is_refused_by_name(tmp_path: Any, nodes: list[NodeProto], said: str) -> None:
    constants = {"pads": whole(0, 0, 1, 0, 0, 1), "size": whole(3, 3), "block": whole(2, 2), "last": whole(-1),
                 "first": whole(-9), "axis": whole(2), "back": whole(-1)}  # fmt: skip
    file = graph_file(tmp_path, nodes, {"x": numbers(0, 1, 4, 4)}, constants)
    with pytest.raises(ValueError, match=said):
        lower(read_graph(file), FLOAT32)


def test_rows_of_a_gemm_may_share_a_number_but_not_have_their_own(tmp_path: Any) -> None:
    weight = {"w": numbers(0, 4, 3)}
    check([node("Gemm", ["x", "w", "c"])], {"x": numbers(1, 3, 4)}, {**weight, "c": np.array([2.0], np.float32)})
    file = graph_file(
        tmp_path, [node("Gemm", ["x", "w", "c"])], {"x": numbers(1, 3, 4)}, {**weight, "c": numbers(2, 3, 1)}
    )
    with pytest.raises(ValueError, match=r"Gemm 'the_Gemm': C of shape \(3, 1\); one row for all is lowered"):
        lower(read_graph(file), FLOAT32)


def test_neighbours_by_another_rule_are_refused(tmp_path: Any) -> None:
    scales = {"scales": np.array([1, 1, 4, 4], np.float32)}
    nodes = [node("Resize", ["x", "", "scales"], mode="nearest", coordinate_transformation_mode="asymmetric")]
    file = graph_file(tmp_path, nodes, {"x": numbers(0, 1, 2, 3, 3)}, scales)
    with pytest.raises(ValueError, match=r"Resize 'the_Resize': .*'nearest_mode': None"):
        lower(read_graph(file), FLOAT32)


def test_pixels_go_into_channels_within_rank_5() -> None:
    constants = {"six": whole(1, 3, 4, 2, 4, 2), "four": whole(1, 12, 4, 4)}
    nodes = [node("Reshape", ["x", "six"], ["a"]), node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 5, 2, 4]),
             node("Reshape", ["b", "four"])]  # fmt: skip
    check(nodes, {"x": numbers(0, 1, 3, 8, 8)}, constants)


def test_sdpa_needs_ios_18(tmp_path: Any) -> None:
    file = graph_file(tmp_path, [node("Relu")], {"x": numbers(0, 3)}, {})
    with pytest.raises(ValueError, match="sdpa needs iOS 18; the target is 17"):
        lower(read_graph(file), Options(attention="sdpa", target=17))


def test_what_depends_on_no_input_is_computed_before(tmp_path: Any) -> None:
    constants = {"a": numbers(0, 3), "b": numbers(1, 3)}
    nodes = [node("Add", ["a", "b"], ["c"]), node("Exp", ["c"], ["e"]), node("Mul", ["x", "e"])]
    graph = read_graph(graph_file(tmp_path, nodes, {"x": numbers(2, 3)}, constants))
    assert [each.op for each in graph.nodes] == ["Mul"]
    np.testing.assert_allclose(graph.constants["e"], np.exp(constants["a"] + constants["b"]), rtol=1e-6)
