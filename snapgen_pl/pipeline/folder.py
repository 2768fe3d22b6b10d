"""A pipeline's folder as a source of what was trained, like the run that it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.autoencoders.vq import VQ
from snapgen_pl.config_files import Value, class_value
from snapgen_pl.diffusers_weights import read_tensors
from snapgen_pl.digest import tensors_digest
from snapgen_pl.flow.samplers import Euler
from snapgen_pl.pipeline.building import check_classes, check_fits
from snapgen_pl.pipeline.placed_decoder import PlacedDecoder
from snapgen_pl.pipeline.places import (
    AGAIN,
    AUTOENCODER,
    CONDITIONER,
    DECODER,
    DENOISER,
    config_of,
    network_of,
    placed,
)
from snapgen_pl.runs import PIPELINE
from snapgen_pl.trained_run import Trained, open_run
from snapgen_pl.whole_files import read_json

# Whatever stage trained it, it draws as this; a name, for its module imports Lightning.
_MODULE = "snapgen_pl.modules.pretrain.Pretrain"
# The parts that are trained; their weights go by the names that they have in a run's module.
_TRAINED = (DENOISER, CONDITIONER, DECODER)
_AUTOENCODERS = {"AutoencoderKL": KL, "VQModel": VQ}
# Options of diffusers' scheduler that make other times than Euler's.
_OTHER_TIMES = (
    "use_dynamic_shifting",
    "shift_terminal",
    "stochastic_sampling",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)


@dataclass(frozen=True)
class PipelineFolder(Trained):
    """What ``export diffusers`` wrote; :func:`open_pipeline` reads its configuration.

    An autoencoder of diffusers decodes in fp32 here, as in a pipeline that is opened without a dtype.

    Attributes:
        folder: the pipeline's.
        config: of a module that draws what it draws.
    """

    @property
    def origin(self) -> str:
        """The folder."""
        return f"the pipeline {self.folder}"

    @property
    def images_seen(self) -> int:
        """It does not say."""
        return 0

    def weights(self) -> dict[str, Tensor]:
        """Those of the parts that it has."""
        folders = [self.folder / part for part in _TRAINED if (self.folder / part).is_dir()]
        return {name: tensor for folder in folders for name, tensor in read_tensors(folder).items()}

    def weights_facts(self) -> dict[str, Value]:
        """The folder, and the digest of all that is trained in it."""
        return {"pipeline": str(self.folder), "sha256": tensors_digest(self.weights()), "weights": "EMA"}

    def autoencoder_rounded(self) -> bool:
        """As their type says."""
        return {tensor.dtype for tensor in read_tensors(self.folder / AUTOENCODER).values()} != {torch.float32}

    def classes(self) -> tuple[str, ...]:
        """As its conditioner says."""
        names = config_of(self.folder / CONDITIONER).get("classes")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self.folder / CONDITIONER / 'config.json'} does not say its classes; {AGAIN}")
        return tuple(names)


def open_trained(path: str) -> Trained:
    """The run, or the pipeline, in a folder; its weights are not read yet.

    Raises:
        ValueError: for a folder that is neither, or damaged.
        FileNotFoundError: where a run has no checkpoint.
    """
    return open_pipeline(path) if (Path(path) / PIPELINE).is_file() else open_run(path)


def open_pipeline(path: str) -> PipelineFolder:
    """The pipeline in a folder; its weights are not read yet.

    Raises:
        ValueError: where a file is missing or damaged, names a class of elsewhere, asks for more than its weights fill,
            or is of another kind of pipeline.
    """
    folder = Path(path)
    index = read_json(folder / PIPELINE, AGAIN)
    if index.get("_class_name") != "SnapGenPipeline":
        raise ValueError(f"{path} is a {index.get('_class_name')}; give a pipeline that `export diffusers` made")
    unet, own = config_of(folder / DENOISER), _autoencoder(folder)
    model: dict[str, Value] = {
        "denoiser": network_of(folder / DENOISER),
        "sigma_data": unet.get("sigma_data"),
        "conditioner": placed(network_of(folder / CONDITIONER), path),
        "autoencoder": _redecoded(own, folder),
        "image_size": _given(index, "image_size", folder),
        "sampler": _sampler(folder, _given(index, "num_inference_steps", folder)),
        "guidance": {key: _given(index, f"guidance_{key}", folder) for key in ("scale", "interval", "channels")},
        "seed": _given(index, "seed", folder),
    }
    check_classes(model)
    for place, network in ((DENOISER, model["denoiser"]), (CONDITIONER, model["conditioner"]), (AUTOENCODER, own)):
        check_fits(network, folder / place)
    return PipelineFolder(folder, {"model": {"class_path": _MODULE, "init_args": model}})


def _given(index: Mapping[str, Any], key: str, folder: Path) -> Any:
    if key not in index:
        raise ValueError(f"{folder / PIPELINE} does not say {key}; {AGAIN}")
    return index[key]


def _autoencoder(folder: Path) -> Value:
    config = config_of(folder / AUTOENCODER)
    if kind := _AUTOENCODERS.get(str(config.get("_class_name"))):
        scaled = {"shift": config.get("shift_factor") or 0.0, "scale": config.get("scaling_factor")}
        return class_value(kind, path=str(folder), subfolder=AUTOENCODER, **scaled)
    return network_of(folder / AUTOENCODER)


def _redecoded(autoencoder: Value, folder: Path) -> Value:
    """The autoencoder, with the decoder that stands in for its own where there is one."""
    if not (folder / DECODER).is_dir():
        return autoencoder
    return class_value(PlacedDecoder, autoencoder=autoencoder, path=str(folder))


def _sampler(folder: Path, steps: Value) -> Value:
    """The sampler that a scheduler stands for; see ``scheduler.scheduler_of``."""
    file = folder / "scheduler" / "scheduler_config.json"
    match read_json(file, AGAIN):
        case {"_class_name": "SamplerScheduler", "sampler": {"class_path": kind, "init_args": dict(settings)}}:
            return {"class_path": kind, "init_args": {**settings, "steps": steps}}
        case {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift, **others} if not any(
            others.get(option) for option in _OTHER_TIMES
        ):
            return class_value(Euler, steps=steps, shift=shift)
        case {"_class_name": other}:
            raise ValueError(f"{file} is of a {other} that no sampler here stands for; put back the one that `export "
                             "diffusers` wrote, or draw by SnapGenPipeline.from_pretrained")  # fmt: skip
    raise ValueError(f"{file} does not say what it is of; {AGAIN}")
