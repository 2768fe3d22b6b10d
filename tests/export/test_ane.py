"""Every rule of the Neural Engine finds what breaks it, and every exception covers what it is for and no more."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from torch import Tensor, nn

from snapgen_pl.export.ane import WORST, Finding, broken, findings, tallies
from snapgen_pl.export.ane_exceptions import EXCEPTIONS
from snapgen_pl.export.ane_rules import RULES
from snapgen_pl.export.constant import TensorType
from snapgen_pl.export.graphs import DenoiserGraph, Graph
from snapgen_pl.export.limits import DOUBTED_WEIGHTS, MAX_WEIGHTS
from snapgen_pl.export.mil import convert
from snapgen_pl.export.onnx import export_onnx
from snapgen_pl.export.options import AttentionLayout, Options
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.decoder import Stage as DecoderStage
from snapgen_pl.models.unet import Block, Stage, UNet
from tests.export.saved_program import model_of, saved

Build = Callable[[Var], Var]
BROKEN: dict[str, tuple[tuple[int, ...], Build]] = {
    "dtype": ((1, 4, 1, 64), lambda x: mb.relu(x=mb.cast(x=x, dtype="fp32"))),
    "sides": ((1, 1, 1, 64), lambda x: mb.concat(values=[x] * 300, axis=3)),
    "axis": ((1, 64, 8, 8), lambda x: mb.relu(x=x)),
    "product": ((2, 64), lambda x: mb.linear(x=x, weight=np.ones((32, 64), np.float16))),
    "attention": ((1, 1, 64, 32), lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x)),
    "softmax": ((1, 4, 64, 32), lambda x: mb.softmax(x=x, axis=-1)),
    "reshape": ((1, 64, 8, 32), lambda x: mb.reshape(x=x, shape=[1, 32, 8, 64])),
    "transpose": ((1, 64, 8, 32), lambda x: mb.transpose(x=x, perm=[0, 3, 2, 1])),
    "tile": ((1, 1, 8, 32), lambda x: mb.tile(x=x, reps=[1, 4, 1, 1])),
    "lookup": ((1, 64, 8, 32), lambda x: mb.gather(x=x, indices=np.array([3, 1], np.int32), axis=1)),
    "constant": ((1, 1, 1, 3), lambda x: mb.add(x=x, y=np.array([[[[6e-6, 5e4, np.inf]]]], np.float16))),
    "epsilon": ((1, 64, 8, 32), lambda x: mb.layer_norm(x=x, axes=[1], epsilon=np.float16(1e-5))),
}


def within(folder: Path, shape: tuple[int, ...], build: Build) -> Package:
    """A program that does something between two operations that keep to all rules."""
    inputs = {"x": (shape, types.fp16)}
    return saved(folder, model_of(inputs, lambda x: [mb.tanh(x=build(mb.abs(x=x)))], ct.target.iOS18))


def violations(found: list[Finding]) -> set[str]:
    return {finding.rule for finding in found if finding.exception is None}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_breaks_a_rule_is_found_under_its_name(tmp_path: Path, rule: str) -> None:
    # An epsilon of float16 that is subnormal is a subnormal constant too.
    expected = {rule, "constant"} if rule == "epsilon" else {rule}
    assert violations(findings(within(tmp_path, *BROKEN[rule]))) == expected


def test_the_rest_of_the_rules_and_that_none_is_untested(tmp_path: Path) -> None:
    package = within(tmp_path, (1, 64, 8, 32), lambda x: mb.relu(x=x))
    assert findings(package) == []
    deep = tuple(
        replace(each, outputs=dict.fromkeys(each.outputs, TensorType("FLOAT16", (1, 2, 1, 1, 1, 64))))
        for each in package.operations
        if each.type == "relu"
    )
    others = tuple(each for each in package.operations if each.type != "relu")
    assert violations(findings(replace(package, operations=others[:1] + deep + others[1:]))) == {"rank"}
    file = package.path / "weights"
    file.touch()
    for size, exception in ((DOUBTED_WEIGHTS, "compiler"), (MAX_WEIGHTS, None)):
        os.truncate(file, size)  # of which nothing is on the disk
        (found,) = findings(package)
        assert (found.rule, found.exception, found.operation) == ("weights", exception, "package 'model.mlpackage'")
    assert {*BROKEN, "rank", "weights"} == set(RULES)


def test_the_padding_of_a_last_axis_is_counted(tmp_path: Path) -> None:
    found = findings(within(tmp_path, (1, 64, 8, 8), lambda x: mb.reduce_sum(x=x, axes=[3], keep_dims=True)))
    padding = {finding.value: finding.bytes for finding in found}
    assert padding == {"FLOAT16 (1, 64, 8, 8)": 512 * (64 - 16), "FLOAT16 (1, 64, 8, 1)": 512 * (64 - 2)}
    (tally,) = tallies(found)
    assert (tally.rule, tally.exception, tally.total, tally.bytes) == ("axis", None, 4, 2 * 512 * (48 + 62))
    assert tally.operations == {"input": 1, "abs": 1, "reduce_sum": 1, "tanh": 1}
    assert [finding.bytes for finding in tally.worst] == [512 * 62, 512 * 62, 512 * 48][:WORST]
    assert broken([tally]) == "4 axis"


WEIGHT = np.ones((64, 64, 3, 3), np.float16)
NO_EXCEPTION: dict[str, tuple[str, tuple[int, ...], Build]] = {
    "a grid whose rows no convolution has": (
        "axis",
        (1, 64, 64, 32),
        lambda x: mb.relu(x=mb.reshape(x=mb.conv(x=x, weight=WEIGHT, pad_type="same"), shape=[1, 64, 128, 16])),
    ),
    "one row of many": ("product", (2, 64), lambda x: mb.linear(x=x, weight=np.ones((64, 64), np.float16))),
    "queries": (
        "transpose",
        (1, 32, 1, 64),
        lambda x: mb.einsum(
            values=(mb.relu(x=x), mb.relu(x=mb.transpose(x=mb.relu(x=x), perm=[0, 3, 2, 1]))),
            equation="nchw,nwhu->nchu",
        ),
    ),
}


@pytest.mark.parametrize("case", NO_EXCEPTION)
def test_exceptions_cover_nothing_else(tmp_path: Path, case: str) -> None:
    rule, shape, build = NO_EXCEPTION[case]
    assert rule in violations(findings(within(tmp_path, shape, build)))


def onnx_file(folder: Path, module: nn.Module, inputs: Mapping[str, Tensor]) -> Path:
    """A network whose norms do something, as those of trained ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    graph = Graph("network", module.eval(), dict(inputs), ("y",))
    return export_onnx(graph, folder / "network.onnx", {}).path


def lowered(file: Path, folder: Path, options: Options) -> Package:
    path = folder / "network.mlpackage"
    convert(file, path, options)
    return read_package(path)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of block, at the least size whose maps have rows of 64 bytes."""
    stage = Stage(64, down=[Block(residual=False, layers=1)], up=[Block(), Block(layers=1)], self_attention=True)
    unet = UNet([stage], middle_layers=1, in_channels=4, context_dim=48, pooled_dim=40, head_dim=32)
    inputs = {"sample": torch.randn(1, 4, 32, 32), "timestep": torch.tensor([0.9]),
              "context": torch.randn(1, 34, 48), "mask": torch.ones(1, 34), "pooled": torch.randn(1, 40)}  # fmt: skip
    return onnx_file(tmp_path_factory.mktemp("denoiser"), DenoiserGraph(unet, masked=True), inputs)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = Decoder([DecoderStage(64, 1), DecoderStage(32, 1)], in_channels=4)
    return onnx_file(tmp_path_factory.mktemp("decoder"), network, {"latent": torch.randn(1, 4, 32, 32)})


@pytest.mark.parametrize("attention", ["split", "fold"])
def test_a_denoiser_breaks_no_rule(denoiser: Path, tmp_path: Path, attention: AttentionLayout) -> None:
    package = lowered(denoiser, tmp_path, Options(attention=attention))
    found = findings(package)
    assert violations(found) == set(), broken(tallies(found))
    # As at 1024 px, nothing is excepted for its grid.
    assert {each.exception for each in found} == {"island", "vector", "positions", "keys", "interface", "epsilon"}
    count = package.operation_counts
    assert count["transpose"] == 1 + 1 + 3  # the context, all its keys, and the keys of each self-attention
    assert count["einsum"] == (24 if attention == "split" else 12)  # two products for each of two heads, or for both


@pytest.mark.parametrize(("attention", "rules"), [("matmul", {"product", "softmax"}), ("sdpa", {"attention"})])
def test_the_other_layouts_of_attention_break_what_they_are_for(
    denoiser: Path, tmp_path: Path, attention: AttentionLayout, rules: set[str]
) -> None:
    found = findings(lowered(denoiser, tmp_path, Options(attention=attention, target=18)))
    assert violations(found) == rules | {"transpose", "reshape"}  # heads apart, and back


def test_a_decoder_breaks_no_rule_and_has_larger_epsilons_for_ios_16(decoder: Path, tmp_path: Path) -> None:
    found = findings(lowered(decoder, tmp_path, Options()))
    assert {(each.rule, each.exception) for each in found} == {("epsilon", "epsilon")}
    assert findings(lowered(decoder, tmp_path, Options(target=16))) == []


def test_every_exception_says_why() -> None:
    for name, exception in EXCEPTIONS.items():
        assert set(exception.rules) <= set(RULES), name
        assert len(exception.reason) > 30, name
