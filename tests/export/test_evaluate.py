import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from coremltools.proto import Model_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from snapgen_pl.export.evaluate import Extreme, evaluate
from snapgen_pl.export.evaluate_ops import OPERATIONS
from snapgen_pl.export.evaluate_ops.arguments import Arguments
from snapgen_pl.export.package import Operation, Package, read_package
from tests.export.saved_program import edit, model_of, saved

HALF = {"x": ((1, 4, 32), types.fp16), "y": ((1, 4, 32), types.fp16)}


def chain(x: Var, y: Var) -> list[Var]:
    product = mb.mul(x=x, y=y, name="product")
    total = mb.add(x=product, y=np.float16(0.1), name="total")
    quotient = mb.real_div(x=total, y=y, name="quotient")
    root = mb.sqrt(x=mb.abs(x=quotient, name="size"), name="root")
    return [mb.cast(x=mb.sub(x=root, y=x, name="rest"), dtype="fp32", name="out")]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return saved(tmp_path_factory.mktemp("halves"), model_of(HALF, chain))


def as_inputs(**arrays: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


arrays = hnp.arrays(np.float16, (1, 4, 32), elements=st.floats(-65504, 65504, width=16), fill=st.just(1))


@given(arrays, arrays)
def test_declared_types_round_as_numpys_float16(halves: Package, x: np.ndarray, y: np.ndarray) -> None:
    """The chain holds operations that IEEE rounds correctly, so that each must agree bit for bit."""
    with np.errstate(all="ignore"):
        expected = np.sqrt(np.abs((x * y + np.float16(0.1)) / y)) - x
    found = evaluate(halves, as_inputs(x=x, y=y)).outputs["out"].numpy()
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_an_overflow_is_infinite_counted_and_named(halves: Package) -> None:
    x = np.full((1, 4, 32), 2, np.float16)
    x[0, 1, :3] = 300
    found = evaluate(halves, as_inputs(x=x, y=x))
    by_name = {extreme.operation: extreme for extreme in found.extremes}
    assert by_name["product"] == Extreme("product", "mul", 4.0, 3)
    assert by_name["out"].type == "cast"
    assert by_name["out"].nonfinite == 3
    assert [extreme.operation for extreme in found.extremes] == [
        "product", "total", "quotient", "size", "root", "rest", "out"
    ]  # fmt: skip
    assert np.isinf(found.outputs["out"].numpy()).sum() == 3


def test_in_float32_nothing_is_rounded_and_weights_are_as_stored(halves: Package) -> None:
    x = np.full((1, 4, 32), 300, np.float32) + np.arange(32, dtype=np.float32) / 1000
    found = evaluate(halves, as_inputs(x=x, y=x), "float32")
    stored = np.float32(np.float16(0.1))
    np.testing.assert_allclose(found.outputs["out"].numpy(), np.sqrt((x * x + stored) / x) - x, rtol=1e-6)
    assert all(extreme.nonfinite == 0 for extreme in found.extremes)
    assert found.extremes[0].largest == pytest.approx(300.031**2)
    assert found.extremes[0].share == pytest.approx(300.031**2 / 65504)


def test_no_finite_value_at_all_is_reported_as_zero(halves: Package) -> None:
    x = np.full((1, 4, 32), 60000, np.float16)
    assert evaluate(halves, as_inputs(x=x, y=x)).extremes[0] == Extreme("product", "mul", 0.0, 128)
    assert evaluate(halves, as_inputs(x=x * np.nan, y=x)).extremes[0].nonfinite == 128


def test_inputs_are_rounded_to_what_is_declared(halves: Package) -> None:
    x = np.linspace(1, 2, 128, dtype=np.float32).reshape(1, 4, 32)
    wide, narrow = (evaluate(halves, as_inputs(x=a, y=a)).outputs["out"] for a in (x, x.astype(np.float16)))
    assert torch.equal(wide, narrow)


def test_progress_sees_every_operation_in_order(halves: Package) -> None:
    seen = []

    def track(operations: Sequence[Operation]) -> Iterator[Operation]:
        for operation in operations:
            seen.append(operation.name)
            yield operation

    ones = np.ones((1, 4, 32), np.float16)
    evaluate(halves, as_inputs(x=ones, y=ones), progress=track)
    assert seen == [operation.name for operation in halves.operations]


def test_values_are_dropped_after_their_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of results in a row, only the newest and one that the end needs are there between operations."""

    def row(x: Var) -> list[Var]:
        first = value = mb.add(x=x, y=1.0)
        for _ in range(10):
            value = mb.add(x=value, y=1.0)
        return [mb.add(x=value, y=first)]

    package = saved(tmp_path, model_of({"x": ((3,), types.fp32)}, row))
    made, alive, add = [], [], OPERATIONS["add"]

    def remembered(a: Arguments) -> Tensor:
        result = add(a)
        assert isinstance(result, Tensor)
        made.append(weakref.ref(result))
        return result

    def count(operations: Sequence[Operation]) -> Iterator[Operation]:
        for operation in operations:
            yield operation
            if operation.type == "add":
                alive.append([position for position, result in enumerate(made) if result() is not None])

    monkeypatch.setitem(OPERATIONS, "add", remembered)
    outputs = evaluate(package, {"x": torch.zeros(3)}, progress=count).outputs
    assert [value.tolist() for value in outputs.values()] == [[12.0] * 3]
    assert alive == [[0], *([0, newest] for newest in range(1, 11)), [11]]


def test_inputs_must_be_the_packages(halves: Package) -> None:
    x = torch.ones(1, 4, 32)
    with pytest.raises(ValueError, match=r"takes the inputs \['x', 'y'\], given are \['x'\]"):
        evaluate(halves, {"x": x})
    with pytest.raises(ValueError, match=r"given are \['x', 'y', 'z'\]"):
        evaluate(halves, {"x": x, "y": x, "z": x})
    with pytest.raises(ValueError, match=r"takes 'y' of shape \(1, 4, 32\), given is \(1, 4, 31\)"):
        evaluate(halves, {"x": x, "y": x[..., :31]})


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Integers, in and out."""
    inputs = {"i": ((3,), types.int32), "x": ((3,), types.fp32)}
    model = model_of(
        inputs,
        lambda i, x: [
            mb.mul(x=i, y=2, name="twice"),
            mb.cast(x=x, dtype="int32", name="whole"),
            mb.real_div(x=i, y=2, name="half"),
        ],
    )
    return saved(tmp_path_factory.mktemp("numbers"), model)


def test_integers_stay_integers(numbers: Package) -> None:
    found = evaluate(numbers, {"i": torch.tensor([2.0, 4.0, -6.0]), "x": torch.tensor([1.9, -1.9, 3.0])})
    assert {name: value.tolist() for name, value in found.outputs.items()} == {
        "twice": [4, 8, -12],
        "whole": [1, -1, 3],
        "half": [1, 2, -3],
    }
    assert {value.dtype for value in found.outputs.values()} == {torch.int32}
    assert found.extremes == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2.0**31, -3e9])
def test_what_is_no_integer_is_not_made_one(numbers: Package, bad: float) -> None:
    whole = torch.tensor([2, 4, 6])
    with pytest.raises(ValueError, match=r"the operation cast 'whole' failed: .* does not fit INT32"):
        evaluate(numbers, {"i": whole, "x": torch.tensor([1.0, bad, 2.0])})
    with pytest.raises(ValueError, match=r"the input 'i' does not fit: .* does not fit INT32"):
        evaluate(numbers, {"i": torch.tensor([1.0, bad, 2.0]), "x": torch.ones(3)})


def test_an_inexact_division_of_integers_is_refused(numbers: Package) -> None:
    with pytest.raises(ValueError, match=r"real_div 'half' failed: 1.5 does not fit INT32"):
        evaluate(numbers, {"i": torch.tensor([2, 3, 6]), "x": torch.ones(3)})


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A package to be changed."""
    model = model_of(
        {"x": ((1, 4, 6, 5), types.fp32)},
        lambda x: [mb.relu(x=mb.conv(x=x, weight=np.ones((2, 4, 3, 3), np.float32), name="conv"), name="out")],
    )
    return saved(tmp_path, model).path


def operation(model: Model_pb2.Model, kind: str) -> Model_pb2.Model:
    block = model.mlProgram.functions["main"].block_specializations["CoreML7"]
    return next(one for one in block.operations if one.type == kind)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=str(path)) as caught:
        evaluate(read_package(path), {"x": torch.ones(1, 4, 6, 5)})
    return str(caught.value)


def test_a_result_that_is_not_of_the_declared_shape_is_named(edited: Path) -> None:
    def change(model: Model_pb2.Model) -> None:
        operation(model, "conv").outputs[0].type.tensorType.dimensions[2].constant.size = 5

    edit(edited, change)
    assert "the operation conv 'conv' failed: its result is (1, 2, 4, 3), declared is (1, 2, 5, 3)" in refusal(edited)


def test_an_unknown_operation_is_named_before_any_is_evaluated(edited: Path) -> None:
    edit(edited, lambda model: setattr(operation(model, "relu"), "type", "cube"))
    assert "the operation cube 'out' is of a type that is not evaluated" in refusal(edited)


def test_an_argument_without_effect_is_named(edited: Path) -> None:
    edit(edited, lambda model: operation(model, "relu").inputs["slope"].arguments.add(name="x"))
    assert "relu 'out' failed: its arguments ['slope'] are not evaluated" in refusal(edited)


def test_operations_that_do_not_fit_each_other_are_named(edited: Path) -> None:
    def change(model: Model_pb2.Model) -> None:
        operation(model, "conv").inputs["weight"].arguments[0].name = "x"

    edit(edited, change)
    assert "the operation conv 'conv' failed: " in refusal(edited)


def test_results_that_are_not_declared_are_refused(edited: Path) -> None:
    def change(model: Model_pb2.Model) -> None:
        conv = operation(model, "conv")
        conv.outputs.add(name="second").type.CopyFrom(conv.outputs[0].type)

    edit(edited, change)
    assert "it makes 1 results, declared are 2" in refusal(edited)


@pytest.mark.parametrize(
    ("epsilon", "largest"), [(1e-12, 1e-6), (1e-4, 1e-4)], ids=["as torch has it", "a builder's default"]
)
def test_a_whole_block_is_torchs_unless_an_epsilon_is_wrong(tmp_path: Path, epsilon: float, largest: float) -> None:
    """RMS norm, convolution, attention in Apple's layout: torch agrees to 1e-6, and sees a planted epsilon."""
    torch.manual_seed(0)
    weight = torch.randn(3 * 8, 8, 1, 1)

    def block(x: Var) -> list[Var]:
        scale = mb.rsqrt(x=mb.reduce_mean(x=mb.square(x=x), axes=[1], keep_dims=True), epsilon=epsilon)
        q, k, v = mb.split(x=mb.conv(x=mb.mul(x=x, y=scale), weight=weight.numpy()), num_splits=3, axis=1)
        scores = mb.einsum(values=(mb.transpose(x=k, perm=[0, 3, 2, 1]), q), equation="nchw,nwhu->nchu")
        weights = mb.softmax(x=mb.mul(x=scores, y=8**-0.5), axis=1)
        return [mb.einsum(values=(v, weights), equation="nchw,nwhu->nchu")]

    package = saved(tmp_path, model_of({"x": ((1, 8, 1, 32), types.fp32)}, block, ct.target.iOS16))
    x = 0.3 * torch.randn(1, 8, 1, 32)
    normal = x / x.square().mean(dim=1, keepdim=True).sqrt()
    q, k, v = torch.nn.functional.conv2d(normal, weight).squeeze(2).mT.chunk(3, dim=-1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).mT.unsqueeze(2)
    (found,) = evaluate(package, {"x": x}).outputs.values()
    error = float((found - expected).norm() / expected.norm())
    assert error < largest if epsilon == 1e-12 else error > largest
