"""A package cut in two gives what it gave."""

from pathlib import Path

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types

from snapgen_pl.export.chunks import Chunks, chunk_paths, cut
from snapgen_pl.export.compress import compress, compressed_weights
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.example import read_example
from snapgen_pl.export.package import Package, read_package
from tests.export.exported_run import Exported
from tests.export.saved_program import model_of, saved


def halves_of(package: Package, folder: Path, inputs: dict[str, torch.Tensor]) -> Chunks:
    path = folder / "net.mlpackage"
    halves = cut(package, path, inputs)
    assert (halves.first.path, halves.second.path) == chunk_paths(path)
    assert halves.first.metadata == halves.second.metadata == package.metadata
    assert halves.first.opset == halves.second.opset == package.opset
    return halves


def test_a_denoiser_whole_and_compressed(exported_classes: Exported, tmp_path: Path) -> None:
    whole = read_package(exported_classes.folder / "coreml" / "denoiser.mlpackage")
    inputs = dict(read_example(exported_classes.folder / "examples" / "denoiser.safetensors").inputs)
    compress(whole, tmp_path / "small.mlpackage", "int8")
    for package in (whole, read_package(tmp_path / "small.mlpackage")):
        folder = tmp_path / str(package.stored_bytes)
        folder.mkdir()
        halves = halves_of(package, folder, inputs)
        other = {**inputs, "sample": inputs["sample"].flip(0, 2)}  # not that which the cut was checked on
        assert torch.equal(halves(other)["velocity"], evaluate(package, other).outputs["velocity"])
        sizes = [half.stored_bytes for half in halves]
        assert max(sizes) < 0.8 * package.stored_bytes
        assert sum(len(compressed_weights(half)) for half in halves) == len(compressed_weights(package))


def test_a_result_of_the_first_half_is_not_lost(tmp_path: Path) -> None:
    first, second = np.random.default_rng(0).standard_normal((2, 64, 64, 1, 1)).astype(np.float16)

    def build(x: Var) -> list[Var]:
        early = mb.conv(x=x, weight=first, name="early")
        return [mb.relu(x=early, name="aside"), mb.relu(x=mb.conv(x=mb.relu(x=early), weight=second), name="late")]

    package = saved(tmp_path, model_of({"x": ((1, 64, 4, 4), types.fp16)}, build))
    inputs = {"x": torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))}
    halves = halves_of(package, tmp_path, inputs)
    expected = evaluate(package, inputs).outputs
    assert all(torch.equal(halves(inputs)[name], tensor) for name, tensor in expected.items())
