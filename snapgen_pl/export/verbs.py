"""The verbs ``export`` and ``export verify``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from rich.progress import track
from torch import Tensor

from snapgen_pl.autoencoders.with_decoder import with_decoder
from snapgen_pl.export.ane import broken, findings, tallies
from snapgen_pl.export.compress import METADATA
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.example import Example, read_example
from snapgen_pl.export.extra import require_all
from snapgen_pl.export.folder import EXAMPLES, export_run
from snapgen_pl.export.gates import MIN_COMPRESSED_DB, gate_a, gate_b, gate_c, gate_d, measure
from snapgen_pl.export.graphs import EXAMPLE_SEED, EXAMPLE_TIME
from snapgen_pl.export.options import IOS, ISLAND_INPUT, AttentionLayout, Options, Scheme
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.export.report import report_markdown
from snapgen_pl.trained_run import open_run

Format: TypeAlias = Literal["onnx", "coreml"]


def export(
    run: str,
    out: str,
    formats: Sequence[Format] = ("onnx", "coreml"),
    attention: AttentionLayout = "split",
    target: IOS = 17,
    decoder: str | None = None,
    compress: Scheme | None = None,
    whole: Sequence[str] = (),
    chunk_above: float = 500.0,
) -> str:
    """Exports a run's averaged weights as ONNX files and Core ML packages, each checked against torch.

    Args:
        run: the run's folder, such as runs/quickstart; it is left as it is.
        out: a folder that is empty, of an earlier export, or not there.
        formats: onnx alone, or coreml besides, which is made of it.
        attention: how the packages lay attention out: split (Apple's), fold, matmul, or sdpa (iOS 18).
        target: the oldest iOS that runs the packages.
        decoder: the folder of a decoder's run, to export in place of the autoencoder's own decoder.
        compress: palette8 or palette6 store a number of 8 or 6 bits a weight, and a table of values; int8 stores 8 bits
            and a scale an output channel. By default weights are float16.
        whole: graphs that are not compressed, such as text_clip_l.
        chunk_above: packages of more megabytes are written cut in two as well.

    Returns:
        The report.

    Raises:
        ValueError: for a folder that is no run, and where a file does not compute what torch does.
    """
    if not formats:
        raise ValueError("--formats names none; give onnx, or onnx and coreml")
    options = Options(
        attention=attention, target=target, compress=compress, whole=tuple(whole), chunk_above=chunk_above
    )
    if "coreml" not in formats and (idle := options.changed()):
        flags = ", ".join(f"--{name}" for name in idle)
        raise ValueError(f"{flags} would have no effect on ONNX files alone; leave that out, or --formats")
    options.check()
    require_all()
    source = with_decoder(open_run(run), decoder)
    records = export_run(source, Path(out), options if "coreml" in formats else None, say)
    return f"{report_markdown(records)}\nWritten to {out}"


def verify(package: str, example: str | None = None, noise: float | None = None) -> str:
    """Evaluates a Core ML package, and checks it against torch's outputs, or in float16 against itself in float32.

    Its largest values are told beside float16's, operation type by operation type.

    Args:
        package: a .mlpackage.
        example: inputs and what torch gives for them, as `export` writes them; by default those that lie with the
            package, and without any, made-up inputs and the package's own results in float32.
        noise: checks on made-up inputs alone, numbers of this standard deviation: 30 for latents that are saturated.

    Returns:
        What was found.

    Raises:
        ValueError: where the package is damaged, or a gate does not hold.
    """
    if noise is not None and (example is not None or noise <= 0):
        raise ValueError(f"--noise is {noise}; give one above 0, and no --example beside it")
    read = read_package(Path(package))
    file = Path(example) if example is not None else None if noise is not None else _example_file(read.path)
    # Not by its outputs: first halves hand over in float32 what they computed in float16.
    made = (made for each in read.operations if each.type != "const" for made in each.outputs.values())
    whole = all(declared.dtype != "FLOAT16" for declared in made)
    if whole and file is None:
        raise ValueError(
            f"{package} computes nothing in float16, and would be compared with itself; give torch's outputs by "
            "--example"
        )
    given = read_example(file) if file is not None else _made_up(read, 1.0 if noise is None else noise)
    measured = measure(read, given, lambda all_of_them: track(all_of_them, "evaluating"))
    # In float32 the same compressed weights act: a package beside itself is a matter of rounding alone.
    scheme = _scheme(read) if file is not None else None
    difference = gate_a(measured) if whole else gate_b(measured) if scheme is None else gate_d(measured, scheme)
    for complaint in filter(None, (gate_c(measured), difference)):
        raise ValueError(f"{package} fails {complaint}")
    relative, psnr, largest = measured.difference
    rules = tallies(findings(read))
    lines = [
        f"{package}: {len(read.operations):,} operations, {read.opset}",
        f"against {'torch' if file is not None else 'itself in float32'}: relative L2 {relative:.1e}, "
        f"PSNR {psnr:.1f} dB, largest difference {largest:.1e}",
        *(
            f"largest of {each.type}: {each.largest:g}, {each.share:.2%} of float16's largest, in {each.operation}"
            for each in measured.largest[:5]
        ),
        f"rules of the Neural Engine broken: {broken(rules) or 'none'}",
        *(
            f"  {each.rule}, {each.reason or 'BROKEN'}: {each.total} by {each.doers}; the largest is "
            f"{each.worst[0].operation}, {each.worst[0].value}"
            for each in rules
        ),
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    """Tells the user what is being done."""
    print(text, file=sys.stderr, flush=True)


def _scheme(package: Package) -> Scheme | None:
    """How a package says that its weights are compressed."""
    said = package.metadata.get(METADATA)
    known = next((scheme for scheme in MIN_COMPRESSED_DB if scheme == said), None)
    if said is not None and known is None:
        raise ValueError(
            f"{package.path} says that it is compressed as {said!r}; known are {', '.join(MIN_COMPRESSED_DB)}"
        )
    return known


def _example_file(package: Path) -> Path | None:
    """The example that was written with a package."""
    file = package.resolve().parents[1] / EXAMPLES / f"{package.stem}.safetensors"
    return file if file.is_file() else None


def _made_up(package: Package, deviation: float) -> Example:
    """Noise for numbers, ones for masks, zeros for integers; and what the package gives without rounding to float16."""
    generator = torch.Generator().manual_seed(EXAMPLE_SEED)

    def made_up(name: str) -> Tensor:
        declared = package.inputs[name]
        if not declared.dtype.startswith("FLOAT"):
            return torch.zeros(declared.shape, dtype=torch.int32)
        if name == ISLAND_INPUT:
            return torch.full(declared.shape, EXAMPLE_TIME)
        if "mask" in name or name == "kept":
            return torch.ones(declared.shape)
        return deviation * torch.randn(declared.shape, generator=generator)

    inputs = {name: made_up(name) for name in package.inputs}
    return Example(inputs, evaluate(package, inputs, "float32").outputs)
