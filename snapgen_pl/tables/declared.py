"""What configurations declare, and what was measured of it."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from snapgen_pl.config_files import Value
from snapgen_pl.errors import ShortErrors
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.merged_config import merged_config
from snapgen_pl.metrics.sample_report import SampleReport, check_comparable, read_report
from snapgen_pl.models.count import Cost, count, count_module
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.trained_run import arguments

CLASS_TEXT_TOKENS = 77

M = TypeVar("M")


def declared_denoiser(*files: Path, **arguments: int) -> Denoiser:
    """The denoiser that configurations declare, on the meta device.

    Args:
        files: YAML with ``model.init_args.denoiser``, a base before its deltas: what comes later wins.
        arguments: of the denoiser, in place of the files'.
    """
    denoiser = _declared(Denoiser, "denoiser", files, arguments)
    assert isinstance(denoiser, Denoiser)
    return denoiser


def declared_decoder(*files: Path, **arguments: int) -> LatentDecoder:
    """The decoder that configurations declare as ``model.init_args.decoder``; otherwise as a denoiser's."""
    decoder = _declared(LatentDecoder, "decoder", files, arguments)
    assert isinstance(decoder, LatentDecoder)
    return decoder


def _declared(kind: type[nn.Module], name: str, files: Sequence[Path], arguments: Mapping[str, int]) -> nn.Module:
    declared = _model(files)[name]
    return on_meta(kind, name, declared | {"init_args": declared.get("init_args", {}) | dict(arguments)})


def _model(files: Sequence[Path]) -> dict[str, Any]:
    """The arguments of the module that configurations declare."""
    whole: dict[str, Any] = merged_config(files)  # a delta alone names no class
    found: dict[str, Any] = whole["model"]["init_args"]
    return found


def on_meta(kind: type[M], name: str, declared: Value) -> M:
    """The module that a class and its arguments declare, on the meta device.

    Args:
        kind: what it must be.
        name: the argument that declares it, for messages.
        declared: as a configuration holds it.
    """
    parser = _parser(kind, name)
    with torch.device("meta"):
        built: M = getattr(parser.instantiate(parser.parse_object({name: declared})), name)
    return built


def filled(kind: type, name: str, declared: Value) -> dict[str, Any]:
    """The arguments of the class that a configuration declares, its defaults included; nothing is built.

    Args:
        kind: what it must be.
        name: the argument that declares it, for messages.
        declared: as a configuration holds it.
    """
    found: dict[str, Any] = arguments(_parser(kind, name).parse_object({name: declared}).as_dict()[name])
    return found


def _parser(kind: type, name: str) -> ShortErrors:
    parser = ShortErrors()
    parser.add_subclass_arguments(kind, name)
    return parser


@cache
def declared_cost(*files: Path, size: int, tokens: int, **arguments: int) -> Cost:
    """What a denoiser that configurations declare costs; counted once a process, for several tables show it.

    Args:
        files: as in :func:`declared_denoiser`.
        size: side of the latent.
        tokens: context tokens.
        arguments: as in :func:`declared_denoiser`.
    """
    return count(declared_denoiser(*files, **arguments), size, tokens)


def declared_decoder_cost(*files: Path, size: int, **arguments: int) -> Cost:
    """What a decoder that configurations declare costs, by the convention of published decoders.

    Args:
        files: as in :func:`declared_decoder`.
        size: side of the latent.
        arguments: as in :func:`declared_decoder`.
    """
    decoder = declared_decoder(*files, **arguments)
    return count_module(decoder, torch.empty(1, decoder.in_channels, size, size), convention="decoder")


def declared_autoencoder_cost(*files: Path, size: int) -> Cost:
    """What the decoder of a TrainAutoencoder that configurations declare costs; otherwise as a decoder's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config = _model(files)["config"]
    with torch.device("meta"):
        decoder = AutoencoderKL(**config).decoder
    return count_module(decoder, torch.empty(1, config["latent_channels"], size, size), convention="decoder")


def measured_fids(reports: Path | None) -> Mapping[str, float]:
    """FIDs by the full protocol (section 8), by the name of the report's file without its ending.

    Args:
        reports: the folder of ``<row>.json`` files that ``test`` wrote; None is the published experiments' own.

    Raises:
        ValueError: for a file that is no report of the full protocol, or reports that were measured differently.
    """
    folder = reports or experiments_dir() / "results" / "imagenet256"
    found: dict[str, SampleReport] = {file.stem: read_report(file) for file in sorted(folder.glob("*.json"))}
    for name, report in found.items():
        if "fid" not in report.values or report.measurement.get("labels") != "uniform":
            raise ValueError(
                f"{folder / name}.json is not of 50,000 samples of uniform labels against the reference that is "
                f"brought; it holds {', '.join(report.values)}"
            )
    check_comparable(found)
    return {name: report.values["fid"].value for name, report in found.items()}
