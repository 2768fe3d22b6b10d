"""Compressed packages: only weights change, and as their scheme says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from sklearn.cluster import KMeans

from benchmarks.export_compressed import decompressed, run_weights
from snapgen_pl.export.compress import METADATA, compress, compressed_weights, kept_whole
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.example import Example, read_example
from snapgen_pl.export.gates import MIN_COMPRESSED_DB, gate_d, measure
from snapgen_pl.export.limits import to_half
from snapgen_pl.export.options import Scheme
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.trained_run import open_run
from tests.export.exported_run import Exported
from tests.export.saved_program import model_of, saved

SHAPE = (1, 16, 8, 8)


def steps(package: Package) -> list[tuple[str, list[str]]]:
    """What is done, weights left out."""
    constants = ("const", "constexpr_lut_to_dense", "constexpr_affine_dequantize")
    return [(each.type, [str(made) for made in each.outputs.values()]) for each in package.operations
            if each.type not in constants]  # fmt: skip


@pytest.mark.parametrize("scheme", ["palette6", "int8"])
def test_a_denoiser_keeps_its_program_its_ends_and_what_torch_computes(
    exported_classes: Exported, tmp_path: Path, scheme: Scheme
) -> None:
    path = exported_classes.folder / "coreml" / "denoiser.mlpackage"
    whole = read_package(path)
    compress(whole, tmp_path / "denoiser.mlpackage", scheme)
    found = read_package(tmp_path / "denoiser.mlpackage")
    assert steps(found) == steps(whole)
    assert (found.inputs, list(found.outputs), found.opset) == (whole.inputs, list(whole.outputs), whole.opset)
    assert found.metadata == {**whole.metadata, METADATA: scheme}
    example = read_example(exported_classes.folder / "examples" / "denoiser.safetensors")
    before, after = (decompressed(package, example.inputs) for package in (whole, found))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert 3 < len(changed) <= len(compressed_weights(found))  # a table may hold all that a weight had
    assert len(ends := kept_whole(whole)) == 2
    assert changed.isdisjoint(ends)
    assert all(before[name].numel() > 2048 for name in changed)
    for name in changed:
        check = check_int8 if scheme == "int8" else check_palette6
        check(before[name], after[name])
    assert gate_d(measure(found, example), scheme) is None


def test_weights_of_a_package_lead_back_to_those_of_its_run(exported_classes: Exported) -> None:
    example = read_example(exported_classes.folder / "examples" / "denoiser.safetensors")
    found = decompressed(read_package(exported_classes.folder / "coreml" / "denoiser.mlpackage"), example.inputs)
    own = open_run(str(exported_classes.run)).weights()
    back = run_weights(exported_classes.run, found, found)
    assert len(back) == len(found) > 10
    assert all(torch.equal(back[name], torch.from_numpy(to_half(own[name].numpy())).float()) for name in back)
    with pytest.raises(ValueError, match="is none of the run's; export"):
        run_weights(exported_classes.run, {name: 2 * weight for name, weight in found.items()}, found)


def check_int8(weight: torch.Tensor, found: torch.Tensor) -> None:
    """Each is off by half a step of its output channel, of which its largest has 127, and by float16's rounding."""
    rows, given = weight.float().flatten(1), found.float().flatten(1)
    step = rows.abs().amax(dim=1, keepdim=True) / 127
    assert float(((given - rows).abs() / step).max()) <= 0.5 + 2 * 127 / 2**11
    multiples = given / step
    assert float((multiples - multiples.round()).abs().max()) <= 2 * 127 / 2**11


def check_palette6(weight: torch.Tensor, found: torch.Tensor) -> None:
    """At most 64 values, and each number has the nearest of them."""
    values = found.float().unique()
    assert len(values) <= 64
    original, given = weight.float().flatten(), found.float().flatten()
    nearest = (original[:, None] - values).abs().amin(dim=1)
    assert torch.allclose((given - original).abs(), nearest, atol=2e-3 * float(original.abs().max()))


def test_limits_are_what_a_scheme_leaves_of_normal_numbers() -> None:
    numbers = np.random.default_rng(0).standard_normal(20_000)
    means = KMeans(64, n_init=1, random_state=0).fit(numbers[:, None])
    palette = means.cluster_centers_[means.labels_, 0]
    step = 8 / 255
    even = (numbers / step).round() * step
    for scheme, rounded in (("palette6", palette), ("int8", even)):
        left_db = -10 * math.log10(np.mean((rounded - numbers) ** 2) / np.mean(numbers**2))
        assert left_db == pytest.approx(MIN_COMPRESSED_DB[scheme], abs=0.5)
    assert MIN_COMPRESSED_DB["palette8"] - MIN_COMPRESSED_DB["palette6"] == pytest.approx(20 * math.log10(4))


def test_gate_d_finds_a_channel_that_int8_cannot_hold(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 16, 3, 3)).astype(np.float16)
    weight[:, 0] = 0
    weight[:, 0, 1, 1] = 500  # fills the scale of every channel
    whole = saved(tmp_path, between_convolutions(weight))
    inputs = {"x": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))}
    inputs["x"][:, 0] = 0
    example = Example(inputs, evaluate(whole, inputs, "float32").outputs)
    for scheme, holds in (("palette6", True), ("int8", False)):
        compress(whole, tmp_path / f"{scheme}.mlpackage", scheme)
        complaint = gate_d(measure(read_package(tmp_path / f"{scheme}.mlpackage"), example), scheme)
        assert (complaint is None) == holds
    assert complaint is not None
    assert "gate D: as int8 it has" in complaint


def between_convolutions(weight: np.ndarray) -> object:
    eye_in, eye_out = (np.eye(width, dtype=np.float16)[:, :, None, None] for width in (16, 64))

    def build(x: Var) -> list[Var]:
        first = mb.conv(x=x, weight=eye_in, name="conv_in")
        middle = mb.conv(x=first, weight=weight, pad_type="same", name="middle")
        return [mb.conv(x=middle, weight=eye_out, name="conv_out")]

    return model_of({"x": (SHAPE, types.fp16)}, build)
