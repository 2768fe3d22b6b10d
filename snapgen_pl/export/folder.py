"""The folder of an exported run: what lies where, writing it, and drawing from it.

::

    config.yaml              the run's configuration
    manifest.json            what was exported of what; written last, so that a folder without it is none
    report.json, report.md   every figure of the checks
    onnx/<graph>.onnx        and its weights, <graph>.onnx.data
    coreml/<graph>.mlpackage
    examples/<graph>.safetensors   inputs, and what torch gives for them
    tokenizers/<encoder>/    the files of a text encoder's tokenizer
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

from rich.progress import track
from torch import nn

from snapgen_pl import checkpoints
from snapgen_pl.conditioning.class_conditioner import ClassConditioner
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.config_files import Value, as_value, class_value, load_config
from snapgen_pl.drawing import built_module
from snapgen_pl.errors import did_you_mean
from snapgen_pl.export import stand_ins
from snapgen_pl.export.example import example_of
from snapgen_pl.export.export_coreml import export_coreml
from snapgen_pl.export.graphs import (
    CONTEXT,
    DECODER,
    DENOISER,
    Exportable,
    Graph,
    graph_names,
    graphs,
    text_encoders,
    text_graph,
)
from snapgen_pl.export.onnx import CONVENTION, OnnxRecord, export_onnx, files_of
from snapgen_pl.export.options import Options
from snapgen_pl.export.package_program import PackageProgram
from snapgen_pl.export.programs import OnnxProgram, Program
from snapgen_pl.export.report import GraphRecord, report_json, report_markdown
from snapgen_pl.last_start import LastStart
from snapgen_pl.pipeline.ingredients import MADE_FROM, ingredients
from snapgen_pl.pipeline.licences import most_restrictive
from snapgen_pl.provenance import describe_code, describe_machine
from snapgen_pl.runs import Run
from snapgen_pl.trained_run import TrainedRun, arguments
from snapgen_pl.whole_files import is_empty, is_file, read_json, whole_folder, write_json, write_text

MANIFEST, CONFIG, REPORT = "manifest.json", "config.yaml", "report"
ONNX, COREML, EXAMPLES, TOKENIZERS = "onnx", "coreml", "examples", "tokenizers"
WRITTEN = frozenset((MANIFEST, CONFIG, f"{REPORT}.json", f"{REPORT}.md", ONNX, COREML, EXAMPLES, TOKENIZERS))
KIND = "snapgen_pl.export"  # tells its manifest from a run's
AGAIN = "export the run again"

Backend: TypeAlias = Literal["onnx", "coreml"]
PROGRAMS: Mapping[Backend, tuple[type[Program], str, str]] = {
    "onnx": (OnnxProgram, ONNX, ".onnx"),
    "coreml": (PackageProgram, COREML, ".mlpackage"),
}


class ExportedRun(NamedTuple):
    """A run that was exported; draws without its checkpoint, and without its encoders' weights.

    Attributes:
        folder: of the export.
        config: the run's, with programs in the places of the module's parts.
        manifest: of the export.
        backend: what runs its networks.
    """

    folder: Path
    config: dict[str, Value]
    manifest: dict[str, Value]
    backend: Backend

    @property
    def origin(self) -> str:
        """Where the weights are from, in words."""
        return str(self.folder)

    def facts(self) -> dict[str, Value]:
        """Which weights they are, and what runs them."""
        facts = {key: self.manifest[key] for key in ("run", "checkpoint", "step", "weights", "decoder")}
        return {**facts, "backend": self.backend}

    def classes(self) -> tuple[str, ...]:
        """The names of the classes; labels index them."""
        names = self.manifest["classes"]
        assert isinstance(names, list)
        return tuple(map(str, names))

    def load(self, module: nn.Module) -> None:
        """Nothing: programs read their own weights."""
        module.eval()


def export_run(
    source: TrainedRun, out: Path, coreml: Options | None = None, say: Callable[[str], None] = lambda _: None
) -> list[GraphRecord]:
    """Exports the averaged weights of a run, and writes what drawing from them needs besides.

    Args:
        source: the run.
        out: a folder that is empty, an export, or not there.
        coreml: how to make Core ML packages besides ONNX files; None makes none.
        say: is told what is being made.

    Raises:
        ValueError: where the folder holds something else, or a graph is not what torch computes.
    """
    check_out(out)
    module = built_module(source.config)
    if coreml is not None:
        check_whole(coreml.whole, module.conditioner)
    classes = source.classes() if module.takes == "label" else ()
    module.ready(source.folder, (), classes)
    source.load(module)
    facts = run_facts(source, module)
    with whole_folder(out) as part:
        records = write_graphs(module, facts, part, coreml, say)
        write_tokenizers(module.conditioner, part)
        shutil.copyfile(Run(source.folder).config, part / CONFIG)
        write_json(report_json(records), part / f"{REPORT}.json")
        write_text(report_markdown(records), part / f"{REPORT}.md")
        onnx = [record.onnx for record in records]
        write_manifest(part, module.conditioner, onnx, {**facts, "classes": list(classes)})
    return [record.moved(part, out) for record in records]


def check_out(out: Path) -> None:
    """Raises ValueError where there is something else than an export, or beside one, which is not to be replaced."""
    if is_empty(out):
        return
    if not is_export(out):
        raise ValueError(f"{out} is neither empty nor an export; choose another folder")
    if strangers := sorted({each.name for each in out.iterdir()} - WRITTEN):
        raise ValueError(f"{out} holds what no export wrote and a new one would delete ({', '.join(strangers[:3])}); "
                         "move it elsewhere, or choose another folder")  # fmt: skip


def check_whole(whole: Sequence[str], conditioner: Conditioner) -> None:
    """Raises ValueError for a name that shall not be compressed, and is no graph's."""
    names = graph_names(conditioner)
    for name in whole:
        if name not in names:
            raise ValueError(f"no graph {name!r} to keep whole among {', '.join(names)}{did_you_mean(name, names)}")


def is_export(folder: Path) -> bool:
    """Whether a folder is what ``export`` made."""
    try:
        _manifest(folder)
    except ValueError:
        return False
    return True


def run_facts(source: TrainedRun, module: Exportable) -> dict[str, Value]:
    """What every file says of the weights in it.

    Args:
        source: the run.
        module: of it, ready.

    Raises:
        ValueError: where the run's manifest is missing or damaged.
    """
    decoder = {} if source.decoder is None else {"trained": _weights_facts(source.decoder)}
    made_from = ingredients(source.config)
    whole = most_restrictive(each.licence for each in made_from)
    return {
        **_weights_facts(source),
        "module": source.module_name,
        "decoder": {**module.autoencoder.decoding(), **decoder},
        "commit": LastStart(source.folder).said(str, "code", "commit"),
        "exported_by": describe_code().commit,
        "licence": "unknown" if whole is None else whole.name,
        MADE_FROM: [each.facts() for each in made_from],
    }


def _weights_facts(source: TrainedRun) -> dict[str, Value]:
    return {
        "run": source.folder.resolve().name,
        "checkpoint": source.checkpoint.name,
        "step": checkpoints.step_of(source.checkpoint),
        "weights": "EMA",
    }


def write_graphs(
    module: Exportable,
    facts: Mapping[str, Value],
    folder: Path,
    coreml: Options | None,
    say: Callable[[str], None],
) -> list[GraphRecord]:
    """All graphs of a module as files, with their examples, in an empty folder."""
    for name in (ONNX, COREML, EXAMPLES):
        (folder / name).mkdir()
    metadata = {
        f"snapgen_pl.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in facts.items()
        if value is not None
    }
    return [_write_graph(graph, metadata, folder, coreml, say) for graph in graphs(module)]


def _write_graph(
    graph: Graph,
    metadata: Mapping[str, str],
    folder: Path,
    coreml: Options | None,
    say: Callable[[str], None],
) -> GraphRecord:
    say(f"{graph.name}: ONNX")
    sizes = json.dumps({name: list(tensor.shape) for name, tensor in graph.inputs.items()})
    example = example_of(graph)
    onnx = export_onnx(graph, folder / ONNX / f"{graph.name}.onnx", {**metadata, "snapgen_pl.sizes": sizes}, example)
    example.write(folder / EXAMPLES / f"{graph.name}.safetensors")
    if coreml is None:
        return GraphRecord(onnx, None)
    say(f"{graph.name}: Core ML")
    package = folder / COREML / f"{graph.name}.mlpackage"
    evaluating = partial(track, description=f"evaluating {graph.name}", transient=True)
    return GraphRecord(onnx, export_coreml(onnx.path, package, coreml, example, evaluating))


def write_tokenizers(conditioner: Conditioner, folder: Path) -> None:
    """Copies the files of all tokenizers."""
    for name, encoder in text_encoders(conditioner).items():
        place = folder / TOKENIZERS / name
        place.mkdir(parents=True)
        for file in encoder.tokenizer_files:
            shutil.copyfile(file, place / file.name)


def write_manifest(
    folder: Path, conditioner: Conditioner, records: list[OnnxRecord], facts: Mapping[str, Value]
) -> None:
    """Writes what the folder is, once all else is in it.

    Args:
        folder: of the export.
        conditioner: that was exported.
        records: of its ONNX files.
        facts: of the run, its classes among them.
    """
    content = {
        "kind": KIND,
        **facts,
        "convention": CONVENTION,
        "code": describe_code()._asdict(),
        "machine": describe_machine()._asdict(),
        "num_classes": conditioner.num_classes if isinstance(conditioner, ClassConditioner) else None,
        "encoders": {name: _encoder_facts(encoder) for name, encoder in text_encoders(conditioner).items()},
        "graphs": {record.graph: _graph_facts(record) for record in records},
    }
    write_json(as_value(content), folder / MANIFEST)


def open_exported(path: str, backend: Backend) -> ExportedRun:
    """The exported run in a folder; its weights are not read yet.

    Args:
        path: of the folder.
        backend: what is to run its networks.

    Raises:
        ValueError: for a folder that is none, or of which something is missing or damaged.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    _check_files(folder, manifest)
    config = load_config(folder / CONFIG)
    model = arguments(config.get("model"))
    if not model:
        raise ValueError(f"{folder / CONFIG} is damaged: it has no model; {AGAIN}")
    model.update(_stand_ins(folder, manifest, backend))
    return ExportedRun(folder, config, manifest, backend)


def _manifest(folder: Path) -> dict[str, Value]:
    file = folder / MANIFEST
    if not file.is_file():
        raise ValueError(f"{folder}: no exported run there ({file} does not exist); give the folder that `export` made")
    manifest = read_json(file, AGAIN)
    if manifest.get("kind") != KIND:
        raise ValueError(f"{folder} holds no exported run, but something else; give the folder that `export` made")
    if not _is_whole(manifest):
        raise ValueError(f"{file} is damaged: it does not say what was exported; {AGAIN}")
    return manifest


def _is_whole(manifest: Mapping[str, Value]) -> bool:
    """Whether all is there that drawing asks for, and names nothing outside of the folder."""
    match manifest:
        case {
            "run": str(),
            "checkpoint": str(),
            "step": int(),
            "weights": str(),
            "decoder": dict(),
            "classes": list(classes),
            "num_classes": int() | None,
            "encoders": dict(encoders),
            "graphs": dict(graphs),
        }:
            return (
                all(isinstance(name, str) for name in classes)
                and all(_is_inside(name) and _is_encoder(facts) for name, facts in encoders.items())
                and all(_is_graph(facts) for facts in graphs.values())
            )
    return False


def _is_encoder(facts: Value) -> bool:
    match facts:
        case {"tokenizer": str(), "tokens": int(), "truncate": bool(), "identity": str()}:
            return True
    return False


def _is_graph(facts: Value) -> bool:
    match facts:
        case {"files": dict(files)}:
            return all(_is_inside(file) and isinstance(size, int) for file, size in files.items())
    return False


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


def _check_files(folder: Path, manifest: Mapping[str, Value]) -> None:
    """Raises ValueError where a file is missing, or has not the size that it had."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder / CONFIG} is missing; {AGAIN}")
    for name, facts in _mapping(manifest, "graphs").items():
        assert isinstance(facts, dict), name
        for file, size in _mapping(facts, "files").items():
            path = folder / file
            if not is_file(path):
                raise ValueError(f"{path} is missing; {AGAIN}")
            if path.stat().st_size != size:
                raise ValueError(f"{path} is damaged: {path.stat().st_size:,} bytes, {size:,} were written; {AGAIN}")


def _stand_ins(folder: Path, manifest: Mapping[str, Value], backend: Backend) -> dict[str, Value]:
    """The parts of a module as programs, as a configuration writes them."""
    kind, place, ending = PROGRAMS[backend]

    def program(graph: str) -> Value:
        file = folder / place / f"{graph}{ending}"
        if not os.path.exists(file):  # noqa: PTH110  (as in is_file)
            raise ValueError(f"{file} is missing; {AGAIN}, and leave --formats out: both are made by default")
        return class_value(kind, path=str(file))

    conditioner: Value
    if encoders := _mapping(manifest, "encoders"):
        stand = {name: _encoder_part(program(text_graph(name)), facts, folder / TOKENIZERS / name)
                 for name, facts in encoders.items()}  # fmt: skip
        conditioner = class_value(stand_ins.ProgramTexts, program=program(CONTEXT), encoders=stand)
    else:
        classes = manifest["num_classes"]
        conditioner = class_value(stand_ins.ProgramLabels, program=program(CONTEXT), num_classes=classes)
    return {
        "denoiser": class_value(stand_ins.ProgramDenoiser, program=program(DENOISER)),
        "conditioner": conditioner,
        "autoencoder": class_value(stand_ins.ProgramAutoencoder, program=program(DECODER)),
        "sigma_data": None,  # the graph has it inside
    }


def _encoder_part(program: Value, facts: Value, tokenizer: Path) -> Value:
    assert isinstance(facts, dict)
    saved = {"folder": str(tokenizer), "kind": facts["tokenizer"], "tokens": facts["tokens"],
             "truncate": facts["truncate"]}  # fmt: skip
    return {"program": program, "tokenizer": saved, "identity": facts["identity"]}


def _encoder_facts(encoder: TextEncoder) -> dict[str, Value]:
    kind, _ = encoder.classes()
    return {
        "class": type(encoder).__name__,
        "identity": encoder.identity,
        "tokenizer": kind.__name__,
        "tokens": encoder.tokens,
        "truncate": encoder.truncate,
    }


def _graph_facts(record: OnnxRecord) -> dict[str, Value]:
    program = OnnxProgram(str(record.path))
    return {
        "files": {f"{ONNX}/{file.name}": file.stat().st_size for file in files_of(record.path)},
        "inputs": {name: list(spec.shape) for name, spec in program.inputs.items()},
        "outputs": {name: list(spec.shape) for name, spec in program.outputs.items()},
        "parameters": record.parameters,
        "opset": record.opset,
        "max_abs_error": record.max_abs_error,
    }


def _mapping(manifest: Mapping[str, Value], key: str) -> dict[str, Value]:
    found = manifest[key]
    assert isinstance(found, dict), key
    return found
