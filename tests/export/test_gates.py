"""The gates hold for what is right, and bite where something is wrong, by name."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.export.difference import EQUAL_DB, difference
from snapgen_pl.export.example import Example, read_example
from snapgen_pl.export.export_coreml import CoreMLRecord, export_coreml
from snapgen_pl.export.mil import norms, shapes
from snapgen_pl.export.mil.elementwise import apply
from snapgen_pl.export.mil.layout import Value
from snapgen_pl.export.mil.lowering import RULES, Lowering
from snapgen_pl.export.options import AttentionLayout, Options
from tests.export.exported_run import Exported
from tests.export.lowered import graph_file
from tests.export.test_mil import node, numbers


def again(exported: Exported, folder: Path, options: Options = Options()) -> CoreMLRecord:  # noqa: B008  (frozen)
    """Lowers a run's denoiser once more."""
    onnx = exported.records["denoiser"].onnx.path
    example = read_example(exported.folder / "examples" / "denoiser.safetensors")
    return export_coreml(onnx, folder / "denoiser.mlpackage", options, example)


def test_every_package_of_a_run_holds(exported_classes: Exported, exported_texts: Exported) -> None:
    for exported in (exported_classes, exported_texts):
        for name, record in exported.records.items():
            assert record.coreml is not None
            assert record.coreml.float32.difference.relative_l2 < 1e-5, name
            assert record.coreml.float16.difference.psnr_db > 50, name
            assert not record.coreml.float16.nonfinite, name
            assert record.coreml.path.is_dir()


@pytest.mark.parametrize("layout", ["fold", "matmul", "sdpa"])
def test_the_other_layouts_of_attention_hold_too(
    exported_texts: Exported, tmp_path: Path, layout: AttentionLayout
) -> None:
    record = again(exported_texts, tmp_path, Options(attention=layout, target=18))
    assert ("scaled_dot_product_attention" in record.operations) == (layout == "sdpa")
    assert ("einsum" in record.operations) == (layout == "fold")


def test_float16_of_ios_16_holds_with_its_larger_epsilons(exported_classes: Exported, tmp_path: Path) -> None:
    assert again(exported_classes, tmp_path, Options(target=16)).float16.difference.psnr_db > 50


def plant_epsilon(lowering: Lowering) -> Value:
    coarse = {**lowering.node.attributes, "epsilon": 1e-4}
    lowering.current = lowering.node._replace(attributes=coarse)
    return norms.rms_norm(lowering)


def plant_group_epsilon(lowering: Lowering) -> Value:
    lowering.current = lowering.node._replace(attributes={**lowering.node.attributes, "epsilon": 1e-2})
    return norms.group_norm(lowering)


def plant_swapped_skip(lowering: Lowering) -> Value:
    lowering.current = lowering.node._replace(inputs=lowering.node.inputs[::-1])
    return shapes.concat(lowering)


PLANTED: list[tuple[str, Callable[[Lowering], Value]]] = [
    ("RMSNormalization", plant_epsilon),
    ("GroupNormalization", plant_group_epsilon),
    ("Concat", plant_swapped_skip),
]


@pytest.mark.parametrize(("op", "wrong"), PLANTED, ids=[op for op, _ in PLANTED])
def test_gate_a_finds_an_operator_that_is_another_one(
    exported_texts: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    wrong: Callable[[Lowering], Value],
) -> None:
    monkeypatch.setitem(RULES, op, wrong)
    with pytest.raises(ValueError, match=rf"denoiser fails gate A: .*the error grows most in {op} "):
        again(exported_texts, tmp_path)


def test_gate_a_tells_gelu_by_tanh_from_the_exact_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(numbers(0, 1, 8, 64))
    file = graph_file(tmp_path, [node("Gelu")], {"x": x.numpy()}, {})
    example = Example({"x": x}, {"y": torch.nn.functional.gelu(x)})
    assert export_coreml(file, tmp_path / "p.mlpackage", Options(), example).float32.difference.relative_l2 < 1e-6
    monkeypatch.setitem(
        RULES, "Gelu", lambda lowering: apply(lowering, "gelu", lowering.variable(0), mode="TANH_APPROXIMATION")
    )
    with pytest.raises(ValueError, match=r"fails gate A: .*the error grows most in Gelu 'the_Gelu'"):
        export_coreml(file, tmp_path / "p.mlpackage", Options(), example)


def written(tmp_path: Path, scale: float) -> tuple[Path, Example]:
    """y = ((scale x)^2) / scale^2, and so x^2, if the numbers on the way have room."""
    constants = {"up": np.array(scale, np.float32), "down": np.array(1 / scale**2, np.float32)}
    nodes = [node("Mul", ["x", "up"], ["big"]), node("Mul", ["big", "big"], ["square"]),
             node("Mul", ["square", "down"], ["y"])]  # fmt: skip
    x = numbers(0, 1, 4, 8, 32)
    file = graph_file(tmp_path, nodes, {"x": x}, constants)
    given_ = torch.from_numpy(x)
    return file, Example({"x": given_}, {"y": given_.square()})


def test_gate_c_names_the_operation_that_overflows(tmp_path: Path) -> None:
    file, example = written(tmp_path, 300)
    with pytest.raises(
        ValueError, match=r"fails gate C: mul 'square' gives \d+ values that are NaN or infinite; its largest"
    ):
        export_coreml(file, tmp_path / "p.mlpackage", Options(), example)
    whole_range, fits = written(tmp_path, 30)
    assert not export_coreml(whole_range, tmp_path / "p.mlpackage", Options(), fits).float16.nonfinite


def test_gate_b_finds_what_float16_cannot_tell(tmp_path: Path) -> None:
    constants = {"far": np.array(2000, np.float32)}
    nodes = [node("Add", ["x", "far"], ["there"]), node("Sub", ["there", "far"], ["y"])]
    x = numbers(0, 1, 4, 8, 32)
    file = graph_file(tmp_path, nodes, {"x": x}, constants)
    # What is expected is what float32 gives: it loses something too.
    expected = torch.from_numpy((x + np.float32(2000)) - np.float32(2000))
    example = Example({"x": torch.from_numpy(x)}, {"y": expected})
    with pytest.raises(
        ValueError, match=r"fails gate B: in float16 it has \d\d\.\d dB, 50 dB are needed; .*Sub 'the_Sub'"
    ):
        export_coreml(file, tmp_path / "p.mlpackage", Options(), example)


@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_differences_are_those_by_hand(size: float, seed: int) -> None:
    expected = torch.from_numpy(numbers(seed, 5, 7)).double()
    found = expected + size * torch.from_numpy(numbers(seed + 1, 5, 7)).double()
    error = (found - expected).numpy()
    made = difference(found, expected)
    assert made.relative_l2 == pytest.approx(np.linalg.norm(error) / np.linalg.norm(expected.numpy()))
    mse = float(np.mean(error**2))
    assert made.psnr_db == pytest.approx(10 * math.log10(float(expected.abs().max()) ** 2 / mse))
    assert made.max_abs == pytest.approx(np.abs(error).max())


def test_equal_tensors_and_nothing_expected() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert difference(one, one) == (0, EQUAL_DB, 0)
    assert difference(zero, zero) == (0, EQUAL_DB, 0)
    assert difference(one, zero) == (1, -EQUAL_DB, 1)
    with pytest.raises(ValueError, match="found"):
        difference(one, torch.ones(1, 3))
