"""The verb ``export diffusers``: a run's averaged weights as a pipeline of diffusers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.autoencoders.pretrained import Pretrained
from snapgen_pl.autoencoders.with_decoder import WithDecoder, with_decoder
from snapgen_pl.conditioning.class_states import ClassStates
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.config_files import Value, class_value
from snapgen_pl.flow.samplers import Sampler
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.pipeline.card import model_card
from snapgen_pl.pipeline.ingredients import ingredients
from snapgen_pl.pipeline.parts import (
    PipelineAutoencoder,
    PipelineConditioner,
    PipelineDecoder,
    PipelineDenoiser,
    text_encoders,
)
from snapgen_pl.pipeline.places import TEXT_ENCODERS, TOKENIZERS
from snapgen_pl.pipeline.scheduler import scheduler_of
from snapgen_pl.pipeline.snapgen_pipeline import SnapGenPipeline
from snapgen_pl.pipeline.terms import notice
from snapgen_pl.trained_run import TrainedRun, arguments, open_run
from snapgen_pl.whole_files import check_empty, whole_folder, write_text


def export(run: str, out: str, decoder: str | None = None) -> str:
    """Writes a run as a pipeline's folder: safetensors that from_pretrained opens, and a model card.

    Args:
        run: the run's folder, such as runs/quickstart; it is left as it is.
        out: a folder that is empty or not there.
        decoder: the folder of a decoder's run, to take the place of the autoencoder's own decoder.

    Returns:
        A line about what was written.

    Raises:
        ValueError: for a folder that is no run, one that holds something, and parts that fit no pipeline.
    """
    export_pipeline(with_decoder(open_run(run), decoder), Path(out))
    return f"{run} as a pipeline of diffusers in {out}; read its README.md before you pass it on"


def export_pipeline(source: TrainedRun, out: Path) -> None:
    """Writes the averaged weights of a run and all that drawing from them needs, whole or not at all.

    Args:
        source: the run.
        out: a folder that is empty or not there.

    Raises:
        ValueError: where the folder holds something, or the run's parts fit no pipeline.
    """
    check_empty(out)
    pipeline = pipeline_of(source)
    with whole_folder(out) as part:
        pipeline.save_pretrained(part)
        write_text(model_card(source, pipeline, out.name), part / "README.md")
        if text := notice(ingredients(source.config), source.folder.resolve().name):
            write_text(text, part / "NOTICE")


def pipeline_of(source: TrainedRun) -> SnapGenPipeline:
    """A pipeline over the averaged weights of a run.

    Raises:
        ValueError: where its parts fit no pipeline.
    """
    # All of it, so that what the run names is imported: what a pipeline's files name is not.
    parts = source.build(
        "a pipeline", denoiser=Denoiser, conditioner=Conditioner, autoencoder=Autoencoder, sampler=Sampler
    )
    guidance: dict[str, Any] = arguments(_part(source.model, "guidance"))
    conditioner = _conditioner(source, parts.conditioner)
    components: dict[str, Any] = {"conditioner": conditioner, **_text_components(conditioner)}
    components |= _image_components(source, parts.autoencoder)
    sigma_data = source.model.get("sigma_data")
    with torch.random.fork_rng(devices=[]):
        components["unet"] = PipelineDenoiser(_part(source.model, "denoiser"), sigma_data)
    source.load(components["unet"])
    return SnapGenPipeline(
        **components,
        scheduler=scheduler_of(parts.sampler),
        image_size=source.model["image_size"],  # type: ignore[arg-type]
        num_inference_steps=parts.sampler.steps,
        seed=source.model.get("seed", 0),  # type: ignore[arg-type]
        **{f"guidance_{key}": value for key, value in guidance.items()},
    )


def _conditioner(source: TrainedRun, conditioner: Conditioner) -> PipelineConditioner:
    text_encoders(conditioner)  # refuses what fits no pipeline, before the seconds that files take
    classes = list(source.classes()) if conditioner.takes == "label" else []
    if not isinstance(conditioner, ClassStates):
        part = PipelineConditioner(_part(source.model, "conditioner"), classes)
        source.load(part)
        return part
    conditioner.ready(source.folder, tuple(classes))
    rows, masked = len(conditioner.states_NSD), conditioner.mask_NS is not None
    sizes: dict[str, Value] = {"tokens": conditioner.tokens, "context_dim": conditioner.context_dim}
    sizes |= {"num_classes": conditioner.num_classes, "rows": rows, "masked": masked}
    network = class_value(ClassStates, **sizes)
    assert isinstance(network, dict)
    part = PipelineConditioner(network, classes)
    part.conditioner.load_state_dict(
        {name: table for name, table in conditioner.named_buffers() if name in ("states_NSD", "mask_NS")}
    )
    return part


def _text_components(conditioner: PipelineConditioner) -> dict[str, Any]:
    components: dict[str, Any] = {}
    for encoder, place, words in zip(conditioner.text_encoders.values(), TEXT_ENCODERS, TOKENIZERS, strict=False):
        components[words], components[place] = encoder.load(encoder.dtype)
    return components


def _image_components(source: TrainedRun, autoencoder: Autoencoder) -> dict[str, nn.Module]:
    """The autoencoder, and the decoder that stands in for its own."""
    autoencoder.ready(source.folder, ())
    network, decoder = _part(source.model, "autoencoder"), source.decoder
    if not isinstance(autoencoder, WithDecoder):
        return {"vae": _vae(autoencoder, network)}
    assert decoder is not None
    stand_in = PipelineDecoder(_part(decoder.model, "decoder"))
    decoder.load(stand_in)
    return {"vae": _vae(autoencoder.autoencoder, _part(arguments(network), "autoencoder")), "decoder": stand_in}


def _vae(autoencoder: Autoencoder, network: dict[str, Any]) -> Any:
    if not isinstance(autoencoder, Pretrained):
        part = PipelineAutoencoder(network)
        part.autoencoder.load_state_dict(autoencoder.state_dict())
        return part
    vae = autoencoder.network
    shifted = {"shift_factor": autoencoder.shift} if "shift_factor" in vae.config else {}
    if autoencoder.shift and not shifted:
        raise ValueError(f"a {type(vae).__name__} of diffusers has no shift, the run's has {autoencoder.shift}")
    # Where it came from is for the model card to say, without the folder.
    vae.register_to_config(scaling_factor=autoencoder.scale, **shifted, _name_or_path="")
    return vae


def _part(model: dict[str, Value], key: str) -> dict[str, Any]:
    found = model.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"the run's configuration has no {key}")
    return found
