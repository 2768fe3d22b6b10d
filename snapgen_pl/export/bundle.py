"""The verb ``export bundle``: an exported run as a folder for a Mac, and for an app.

::

    Unet.mlpackage, VAEDecoder.mlpackage, TextEncoder.mlpackage, ...   called as in Apple's ml-stable-diffusion
    Context.mlpackage                  the conditioner between text encoders and denoiser, which Apple's has none of
    tokenizers/<encoder>.json          of the library tokenizers
    vocab.json, merges.txt             of CLIP, where there is one
    bundle.json                        what runs them has to know
    README.md, NOTICE                  how, what differs from Apple's, licences
    compile_on_mac.sh, draw_on_mac.py
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snapgen_pl.conditioning.partial_texts import PartialTexts
from snapgen_pl.conditioning.token_ids import SavedTokenizer
from snapgen_pl.config_files import Value, as_value
from snapgen_pl.drawing import built_module
from snapgen_pl.export import mac
from snapgen_pl.export.bundle_readme import bundle_readme
from snapgen_pl.export.chunks import chunk_paths
from snapgen_pl.export.compress import METADATA
from snapgen_pl.export.descriptions import IMAGE_RANGE
from snapgen_pl.export.folder import AGAIN, COREML, MANIFEST, ExportedRun, open_exported
from snapgen_pl.export.graphs import CONTEXT, DECODER, DENOISER, text_graph
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.export.program import IOS_OF
from snapgen_pl.export.stand_ins import ProgramEncoder
from snapgen_pl.flow.samplers import Euler, Renoising, Sampler
from snapgen_pl.pipeline.ingredients import MADE_FROM, Ingredient, of_facts
from snapgen_pl.pipeline.terms import notice
from snapgen_pl.whole_files import check_empty, whole_folder, write_json, write_text

KIND = "snapgen_pl.bundle"
SCRIPTS = ("compile_on_mac.sh", "draw_on_mac.py")
CLIP_FILES = ("vocab.json", "merges.txt")
MACOS_OF = {16: 13, 17: 14, 18: 15}  # that came out with an iOS


def bundle(exported: str, out: str, steps: int | None = None) -> str:
    """Puts an exported run's packages together with all that drawing by them takes on a Mac.

    Nothing of it was run on a Mac.

    Args:
        exported: the folder that `export` made of a run on texts.
        out: a folder that is empty or not there.
        steps: draws in so many steps of Euler; by default the run's sampler draws, if it is Euler or Renoising.

    Returns:
        A line about what was written.

    Raises:
        ValueError: for a folder that is no export or holds no packages, a run on classes, and another sampler.
    """
    source, folder = open_exported(exported, "coreml"), Path(out)
    if folder.resolve().is_relative_to(source.folder.resolve()):
        raise ValueError(f"--out {out} lies in {exported}, which holds an export alone; choose another folder")
    check_empty(folder)
    module = built_module(source.config)
    if not isinstance(module.conditioner, PartialTexts):
        raise ValueError(f"{exported} draws classes, a bundle draws prompts; export a run on texts")
    sampler = _sampler(module.sampler, steps)
    texts = module.conditioner.text_encoders
    names = bundle_names(list(texts))
    made_from = _made_from(source)
    with whole_folder(folder) as part:
        packages = {graph: _copied(source.folder / COREML / f"{graph}.mlpackage", part, name)
                    for graph, name in names.items()}  # fmt: skip
        about = {name: _text(encoder, name, part) for name, encoder in texts.items()}
        content = _content(source, module, sampler, packages, names, about, made_from)
        write_json(content, part / "bundle.json")
        write_text(bundle_readme(content, made_from), part / "README.md")
        if text := notice(made_from, str(source.manifest["run"])):
            write_text(text, part / "NOTICE")
        for script in SCRIPTS:
            shutil.copy(Path(mac.__file__).with_name(script), part / script)
    return f"{exported} as a bundle in {out}; its README.md says what to do on a Mac"


def bundle_names(encoders: Sequence[str]) -> dict[str, str]:
    """How graphs are called in a bundle: as in ml-stable-diffusion, text encoders by their order.

    Args:
        encoders: names of the text encoders.
    """
    names = {DENOISER: "Unet", DECODER: "VAEDecoder", CONTEXT: "Context"}
    for number, encoder in enumerate(encoders, start=1):
        names[text_graph(encoder)] = "TextEncoder" + (str(number) if number > 1 else "")
    return names


def _made_from(source: ExportedRun) -> list[Ingredient]:
    """What the export says that its run, and a decoder in it, were made from: those runs need not be at hand."""
    listed = source.manifest.get(MADE_FROM)
    try:
        if isinstance(listed, list):
            return [of_facts(each) for each in listed]
    except ValueError as error:
        raise ValueError(f"{source.folder / MANIFEST} is damaged: {error}; {AGAIN}") from error
    raise ValueError(f"{source.folder / MANIFEST} does not say what the run was made from; {AGAIN}")


def _sampler(own: Sampler, steps: int | None) -> Sampler:
    sampler = own if steps is None else Euler(steps, own.shift)
    if type(sampler) not in (Euler, Renoising):
        raise ValueError(f"the run draws by {sampler}; a bundle draws by Euler or Renoising: give --steps for Euler")
    return sampler


def _copied(package: Path, folder: Path, name: str) -> list[Package]:
    """Copies a package, or its halves where it was cut."""
    halves = [half for half in chunk_paths(package) if half.is_dir()]
    copies = []
    for number, each in enumerate(halves or [package], start=1):
        copy = folder / f"{name}{f'Chunk{number}' if halves else ''}.mlpackage"
        shutil.copytree(each, copy)
        copies.append(read_package(copy))
    return copies


def write_tokenizer(saved: SavedTokenizer, name: str, folder: Path) -> dict[str, Value]:
    """Writes what makes a text encoder's tokens; what CLIP-L and CLIP-G share is written once.

    Args:
        saved: the tokenizer.
        name: of its encoder.
        folder: of the bundle.

    Returns:
        What it takes to use it.
    """
    tokenizer: Any = saved.loaded
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    file = Path("tokenizers") / f"{name}.json"
    (folder / file).parent.mkdir(exist_ok=True)
    backend.save(str(folder / file))
    if saved.kind == "CLIPTokenizer" and not (folder / CLIP_FILES[0]).exists():
        model = json.loads(backend.to_str())["model"]
        write_json(model["vocab"], folder / CLIP_FILES[0])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        write_text("\n".join(["#version: 0.2", *merges]) + "\n", folder / CLIP_FILES[1])
    return {
        "tokenizer": file.as_posix(),
        "tokens": saved.tokens,
        "truncate": saved.truncate,
        "pad": tokenizer.pad_token_id,
    }


def _text(encoder: object, name: str, folder: Path) -> dict[str, Value]:
    assert isinstance(encoder, ProgramEncoder), encoder
    return {"model": text_graph(name), "masked": encoder.masked, **write_tokenizer(encoder.tokenizer, name, folder)}


def _content(
    source: ExportedRun,
    module: Any,
    sampler: Sampler,
    packages: Mapping[str, list[Package]],
    names: Mapping[str, str],
    texts: Mapping[str, Value],
    made_from: Sequence[Ingredient],
) -> dict[str, Any]:
    decoder = source.manifest["decoder"]
    assert isinstance(decoder, dict)
    every = [package for parts in packages.values() for package in parts]
    ios = max(IOS_OF[package.spec_version] for package in every)
    content = {
        "kind": KIND,
        **{key: value for key, value in source.facts().items() if key != "backend"},
        **{key: source.manifest.get(key) for key in ("module", "commit", "exported_by")},
        "minimum_ios": ios,
        "minimum_macos": MACOS_OF[ios],
        "models": {graph: _model(parts) for graph, parts in packages.items()},
        "texts": texts,
        "convention": source.manifest["convention"],
        "sampler": type(sampler).__name__,
        "timesteps": sampler.times(),
        "guidance": {
            "scale": module.guidance.scale,
            "interval": module.guidance.interval,
            "channels": module.guidance.channels,
        },
        "latents": {
            "shape": module.latent_shape,
            "scale": decoder.get("scale"),
            "shift": decoder.get("shift"),
            "undone_by": names[DECODER],
        },
        "image": {"range": list(IMAGE_RANGE)},
        "licences": [each.facts() for each in made_from],
    }
    found = as_value(content)
    assert isinstance(found, dict)
    return found


def _model(parts: Sequence[Package]) -> dict[str, object]:
    """A model's files, and what goes in and comes out: of halves, in and out of both."""
    made = {name for package in parts for name in package.outputs}
    return {
        "files": [package.path.stem for package in parts],
        "takes": [list(package.inputs) for package in parts],
        "bytes": sum(package.stored_bytes for package in parts),
        "compressed": parts[0].metadata.get(METADATA),
        "inputs": {name: declared.shape for package in parts for name, declared in package.inputs.items()
                   if name not in made},
        "outputs": {name: declared.shape for name, declared in parts[-1].outputs.items()},
    }  # fmt: skip
