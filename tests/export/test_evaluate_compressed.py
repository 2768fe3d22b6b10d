"""Compressed weights: what coremltools compresses, beside its own decompression; and the documented examples."""

from collections.abc import Callable
from pathlib import Path

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from coremltools.models import MLModel

from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.evaluate_ops import OPERATIONS
from snapgen_pl.export.evaluate_ops.arguments import Arguments
from tests.export.saved_program import model_of, saved

WEIGHT = np.random.default_rng(0).standard_normal((32, 16, 3, 3)).astype(np.float32)
SHAPE = (1, 16, 3, 3)


def network(target: ct.target, dtype: type = np.float32) -> MLModel:
    """A convolution whose outputs for unit images are the weights themselves."""

    def build(x: Var) -> list[Var]:
        return [mb.conv(x=x, weight=WEIGHT.astype(dtype), name="out")]

    return model_of({"x": (SHAPE, types.fp16 if dtype == np.float16 else types.fp32)}, build, target)


def weights_of(folder: Path, model: MLModel) -> np.ndarray:
    """The weights as they act: the answers to every unit image, and the file's constexpr operations."""
    package = saved(folder, model)
    (output,) = package.outputs
    x = torch.zeros(SHAPE)
    rows = []
    for index in range(x.numel()):
        x.zero_().view(-1)[index] = 1
        rows.append(evaluate(package, {"x": x}).outputs[output].reshape(-1).float())
    return torch.stack(rows, dim=1).reshape(WEIGHT.shape).numpy()


def palettize(**settings: object) -> Callable[[MLModel], MLModel]:
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=0, **settings))
    return lambda model: cto.palettize_weights(model, config)


def quantize(**settings: object) -> Callable[[MLModel], MLModel]:
    config = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=0, **settings))
    return lambda model: cto.linear_quantize_weights(model, config)


def prune(model: MLModel) -> MLModel:
    return cto.prune_weights(
        model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0))
    )


I16, I18 = ct.target.iOS16, ct.target.iOS18


@pytest.mark.parametrize(
    ("target", "compress", "kind", "furthest"),
    [
        pytest.param(I16, palettize(mode="uniform", nbits=6), "lut_to_dense", 0.09, id="6-bit table"),
        pytest.param(I16, palettize(mode="uniform", nbits=4), "lut_to_dense", 0.4, id="4-bit table"),
        pytest.param(I16, palettize(mode="uniform", nbits=1), "lut_to_dense", 4, id="1-bit table"),
        pytest.param(I16, quantize(mode="linear"), "affine_dequantize", 0.03, id="8 bits"),
        pytest.param(I16, quantize(mode="linear_symmetric"), "affine_dequantize", 0.03, id="8 bits symmetric"),
        pytest.param(I16, prune, "sparse_to_dense", 1, id="sparse"),
        pytest.param(
            I18,
            palettize(mode="uniform", nbits=3, granularity="per_grouped_channel", group_size=8),
            "lut_to_dense",
            0.9,
            id="3-bit tables of groups",
        ),
        pytest.param(
            I18,
            quantize(mode="linear", dtype="int4", granularity="per_block", block_size=8),
            "blockwise_shift_scale",
            0.4,
            id="4 bits a block",
        ),
        pytest.param(
            I18,
            quantize(mode="linear_symmetric", dtype="uint4", granularity="per_channel"),
            "blockwise_shift_scale",
            0.5,
            id="4 bits a channel",
        ),
        pytest.param(I18, prune, "sparse_to_dense", 1, id="sparse of iOS 18"),
    ],
)
def test_compressed_weights_are_what_coremltools_decompresses(
    tmp_path: Path, target: ct.target, compress: Callable[[MLModel], MLModel], kind: str, furthest: float
) -> None:
    model = compress(network(target))
    (tmp_path / "dense").mkdir()
    found = weights_of(tmp_path, model)
    dense = saved(tmp_path / "dense", cto.decompress_weights(model))
    constant = next(o for o in dense.operations if o.type == "const" and o.attributes["val"].type.size == WEIGHT.size)
    expected = constant.attributes["val"].value()
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-7)
    assert 0 < np.abs(found - WEIGHT).max() < furthest
    package = model.get_spec().mlProgram.functions["main"].block_specializations
    used = {o.type for block in package.values() for o in block.operations}
    assert f"constexpr_{kind}" in used


def test_decompressed_weights_are_rounded_to_the_declared_type(tmp_path: Path) -> None:
    found = weights_of(tmp_path, quantize(mode="linear")(network(I16, np.float16)))
    assert np.array_equal(found, found.astype(np.float16))
    assert np.abs(found - WEIGHT).max() < 0.03


def call(op: str, **arguments: object) -> torch.Tensor:
    values = {name: [one if isinstance(one, str) else torch.as_tensor(one)] for name, one in arguments.items()}
    result = OPERATIONS[f"constexpr_{op}"](Arguments(values, 9))
    assert isinstance(result, torch.Tensor)
    return result


def test_bits_are_packed_from_the_least_significant_on() -> None:
    """The documentation's: 2 bits, shape (5,), indices 0, 3, 2, 1, then 3."""
    packed = np.array([0b01_10_11_00, 0b11], np.uint8)
    table = np.array([10, 11, 12, 13], np.float32)
    found = call("lut_to_dense", indices=packed, lut=table, shape=np.array([5]))
    assert found.tolist() == [10, 13, 12, 11, 13]
    sparse = call(
        "sparse_to_dense",
        nonzero_data=np.array([7, 8], np.float32),
        mask=np.array([0b01100], np.uint8),
        shape=np.array([5]),
    )
    assert sparse.tolist() == [0, 0, 7, 8, 0]


def test_tables_of_groups_are_as_documented() -> None:
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    tables = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    expected = [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    assert call("lut_to_dense", indices=indices, lut=tables).tolist() == expected


def test_tables_of_vectors_are_as_documented() -> None:
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    a, b = [1, 2, 3], [4, 5, 6]
    tables = np.array([a, b], np.float32).reshape(1, 1, 1, 2, 3)
    assert call("lut_to_dense", indices=indices, lut=tables, vector_axis=2).tolist() == [[a + a, b + a], [b + b, a + a]]
    along = call("lut_to_dense", indices=indices, lut=tables, vector_axis=1).tolist()
    columns = [[a, a], [b, a]], [[b, b], [a, a]]
    assert along == [[[p[i], q[i]] for p, q in pairs for i in range(3)] for pairs in columns]


def test_scales_are_per_axis_block_or_tensor() -> None:
    data = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    scale, zero = np.array([1, 10, 100], np.float32), np.array([1, 0, 2], np.int8)
    assert call("affine_dequantize", quantized_data=data, scale=scale, zero_point=zero, axis=1).tolist() == [
        [0, 20, 100],
        [3, 50, 400],
    ]
    one = call("affine_dequantize", quantized_data=data, scale=np.float32(2), zero_point=np.int8(1), axis=0)
    assert one.tolist() == [[0, 2, 4], [6, 8, 10]]
    blocks = call("blockwise_shift_scale", data=np.arange(8).reshape(2, 4), scale=np.array([[1.0, 10.0]], np.float32))
    assert blocks.tolist() == [[0, 1, 20, 30], [4, 5, 60, 70]]
    assert call("cast", source_val=np.array([0.1], np.float16), output_dtype="fp32").tolist() == [np.float16(0.1)]


@pytest.mark.parametrize(
    ("reason", "op", "arguments"),
    [
        ("3 entries", "lut_to_dense", {"indices": np.zeros(1, np.uint8), "lut": np.ones(3), "shape": np.array([2])}),
        ("1 bytes do not hold 9 numbers of 1 bits", "sparse_to_dense",
         {"nonzero_data": np.ones(1), "mask": np.zeros(1, np.uint8), "shape": np.array([9])}),
        ("keeps 1 elements, there are 2", "sparse_to_dense", {"nonzero_data": np.ones(2), "mask": np.array([0, 1])}),
        ("entry 4 of a table of 4", "lut_to_dense", {"indices": np.array([4]), "lut": np.ones((1, 4, 1))}),
        ("no vector_axis", "lut_to_dense", {"indices": np.array([1]), "lut": np.ones((1, 4, 2))}),
        ("2 blocks do not divide 3", "blockwise_shift_scale", {"data": np.ones(3), "scale": np.ones(2)}),
        ("its offset is", "blockwise_shift_scale", {"data": np.ones(3), "scale": np.ones(3), "offset": np.ones(1)}),
        ("casts to 'fp16'", "cast", {"source_val": np.ones(3), "output_dtype": "fp16"}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(reason: str, op: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=reason):
        call(op, **arguments)
