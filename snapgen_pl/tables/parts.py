"""Sizes of the networks that a training configuration declares; nothing is read from the hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from snapgen_pl.asked_size import check_layers
from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.config_files import Value, load_config
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.models.preconditioned import preconditioned
from snapgen_pl.tables.declared import filled, on_meta
from snapgen_pl.trained_run import arguments

Settings = Mapping[str, Any]  # of a class, as YAML has them

_SD35 = "stabilityai/stable-diffusion-3.5-large"
_PIPELINES = (_SD35, f"{_SD35}-turbo")


class Encoder(NamedTuple):
    """A text encoder.

    Attributes:
        parameters: of its network.
        tokens: context tokens a text.
        masked: whether padding is masked.
        bytes_each: of a weight.
        published: whether its size is the published one; otherwise it was counted.
    """

    parameters: int
    tokens: int
    masked: bool
    bytes_each: int = 4
    published: bool = True


class Latents(NamedTuple):
    """An autoencoder, and the latents that it makes.

    Attributes:
        size: of its weights, in bytes.
        channels: of a latent.
        downsampling: pixels along a side of a latent's position.
        published: as an encoder's.
    """

    size: int
    channels: int
    downsampling: int
    published: bool


class Asked(NamedTuple):
    """A conditioner.

    Attributes:
        tokens: context tokens a sample.
        masked: whether training masks any of them.
        parameters: that are trained.
        held: bytes of the states that it holds.
        encoders: text encoders that it asks while training, by the names that states go by.
    """

    tokens: int
    masked: bool = False
    parameters: int = 0
    held: int = 0
    encoders: Mapping[str, Encoder] = {}


class TeacherNetwork(NamedTuple):
    """A teacher's network.

    Attributes:
        denoiser: frozen, on the meta device.
        asked: its conditioner.
        guided: whether each sample is asked of it twice.
        autocast: whether it computes in bf16 by autocast.
        placement: see :data:`~snapgen_pl.teachers.placement.Placement`.
    """

    denoiser: Denoiser
    asked: Asked
    guided: bool
    autocast: bool
    placement: str


_CLIP_L = Encoder(123_650_304, 77, False)
_CLIP_G = Encoder(694_659_840, 77, False)
_T5_XXL = Encoder(4_762_310_656, 256, False)
_GEMMA = Encoder(2_614_341_888, 128, True)
# By path and subfolder.
_ENCODERS: dict[tuple[str, str], Encoder] = {
    ("openai/clip-vit-large-patch14", ""): _CLIP_L._replace(parameters=123_060_480),  # without its projection
    ("google/gemma-2-2b", ""): _GEMMA,
}
for _path in _PIPELINES:
    _ENCODERS |= {
        (_path, "text_encoder"): _CLIP_L,
        (_path, "text_encoder_2"): _CLIP_G,
        (_path, "text_encoder_3"): _T5_XXL,
    }
# By path: parameters and channels; all have one position for 8 x 8 pixels.
_AUTOENCODERS = dict.fromkeys(_PIPELINES, (83_819_683, 16)) | {"stabilityai/sd-vae-ft-ema": (83_653_863, 4)}


def class_name(declared: Settings) -> str:
    """The name of the class that a configuration declares, without its module."""
    return str(declared["class_path"]).rpartition(".")[2]


def text_encoder(declared: Settings) -> Encoder:
    """The size of a text encoder: published, or counted by the configuration in its folder.

    Raises:
        ValueError: for one that is neither known nor in a folder.
    """
    given = filled(TextEncoder, "encoder", dict(declared))
    # A packaged MiniLM has no path, and every MiniLM is in fp32.
    path, each = given.get("path", ""), bytes_of(given.get("dtype", "float32"))
    if (known := _ENCODERS.get((path, given.get("subfolder", "")))) is not None:
        return known._replace(tokens=given.get("tokens", known.tokens), bytes_each=each)
    _check_local(path, "encoder")
    built = on_meta(TextEncoder, "encoder", dict(declared))  # type: ignore[type-abstract]
    return Encoder(built.parameters(), built.tokens, built.masked, each, published=False)


def conditioner(declared: Settings, context_dim: int) -> Asked:
    """The size of a conditioner.

    Args:
        declared: its class and arguments.
        context_dim: width of its tokens.

    Raises:
        ValueError: for a text encoder whose size is not known.
    """
    given, name = filled(Conditioner, "conditioner", dict(declared)), class_name(declared)
    if name == "ClassTexts":
        encoder, rows = text_encoder(given["encoder"]), given["num_classes"] + 1
        # All texts are encoded before training, in fp16, and the encoder is let go.
        return Asked(encoder.tokens, encoder.masked, held=2 * rows * encoder.tokens * context_dim)
    if name == "SD3Texts":
        encoders = sd3_encoders(given)
        return Asked(encoders["clip_l"].tokens + given["t5_tokens"], encoders=encoders)
    if name == "JoinedTexts":
        encoders = {each: text_encoder(own) for each, own in given["encoders"].items()}
        blocks = given["blocks"]
        # Whoever drops an encoder masks its tokens.
        masked = given["dropout"] != 0 or any(all(encoders[each].masked for each in block) for block in blocks)
        return Asked(1 + sum(encoders[block[0]].tokens for block in blocks), masked, context_dim, 0, encoders)
    built = on_meta(Conditioner, "conditioner", dict(declared))  # type: ignore[type-abstract]
    return Asked(built.tokens, parameters=sum(weight.numel() for weight in built.parameters()))


def sd3_encoders(given: Settings) -> dict[str, Encoder]:
    """Those of :class:`~snapgen_pl.conditioning.sd3_texts.SD3Texts`."""
    path, dtype = given["path"], given["dtype"]
    clip, t5 = ("snapgen_pl.conditioning.clip_text.CLIPText", "snapgen_pl.conditioning.t5_text.T5Text")
    places = {"clip_l": (clip, ""), "clip_g": (clip, "_2")} | ({"t5": (t5, "_3")} if given["t5"] else {})
    found: dict[str, Encoder] = {}
    for name, (kind, ending) in places.items():
        own = {"path": path, "subfolder": f"text_encoder{ending}", "tokenizer_subfolder": f"tokenizer{ending}"}
        own |= {"tokens": given["t5_tokens"]} if name == "t5" else {"pooled": True}
        found[name] = text_encoder({"class_path": kind, "init_args": {**own, "dtype": dtype}})
    return found


def latents(declared: Settings) -> Latents:
    """The size of an autoencoder: published, or counted; and its latents.

    Raises:
        ValueError: for one that is not known.
    """
    if class_name(declared) == PatchPCA.__name__:
        built = on_meta(Autoencoder, "autoencoder", dict(declared))  # type: ignore[type-abstract]
        size = sum(buffer.nbytes for buffer in built.buffers())
        return Latents(size, built.channels, built.downsampling, published=False)
    if class_name(declared) != "KL":
        raise ValueError(f"the size of a {class_name(declared)} is not known here; KL's and PatchPCA's are")
    given = filled(Autoencoder, "autoencoder", dict(declared))
    path, each = given["path"], bytes_of(given["dtype"])
    if path in _AUTOENCODERS:
        parameters, channels = _AUTOENCODERS[path]
        return Latents(each * parameters, channels, 8, published=True)
    _check_local(path, "autoencoder")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        network: Any = AutoencoderKL.from_config(_read(Path(path) / given["subfolder"]))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    downsampling = 2 ** (len(network.config.block_out_channels) - 1)
    return Latents(each * parameters, network.config.latent_channels, downsampling, published=False)


def sd3_teacher(given: Settings) -> TeacherNetwork:
    """The network of :class:`~snapgen_pl.teachers.sd3.SD3Teacher`: SD3.5-Large's, or that of a folder.

    Raises:
        ValueError: for a network that is neither.
    """
    path = given["path"]
    with torch.device("meta"):
        if path in _PIPELINES:
            denoiser = MMDiT()
        else:
            _check_local(path, "teacher")
            denoiser = MMDiT.from_config(_read(Path(path) / given["subfolder"]))
    denoiser.to(getattr(torch, given["dtype"]))
    asked = conditioner(given["conditioner"], denoiser.context_dim)
    return TeacherNetwork(denoiser, asked, given["guidance"]["scale"] != 1, False, given["placement"])


def run_teacher(given: Settings) -> TeacherNetwork:
    """The network of :class:`~snapgen_pl.teachers.run.RunTeacher`, by the configuration of its run."""
    file = Path(given["run"]) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"the teacher's size is its run's, and {file} does not exist; train it first, or copy it here")
    own: dict[str, Any] = arguments(load_config(file)["model"])
    network = denoiser(own)
    asked = conditioner(own["conditioner"], network.context_dim)
    guided, autocast = given["guidance"]["scale"] != 1, given["dtype"] == "bfloat16"
    return TeacherNetwork(network, asked, guided, autocast, "replicated")


def denoiser(model: Settings) -> Denoiser:
    """The network that a module's arguments declare, as the module wraps it."""
    built = on_meta(Denoiser, "denoiser", model["denoiser"])  # type: ignore[type-abstract]
    return preconditioned(built, model.get("sigma_data"))


def bytes_of(dtype: str) -> int:
    """Of a number."""
    found: torch.dtype = getattr(torch, dtype)
    return found.itemsize


def _check_local(path: str, what: str) -> None:
    if path and not Path(path).is_dir():
        raise ValueError(
            f"the size of the {what} {path} is not known here, and no folder is called so; download its config.json, "
            "or give SD3.5-Large's"
        )


def _read(folder: Path) -> dict[str, Value]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"no config.json in {folder}; give the folder that diffusers saved")
    read: dict[str, Value] = json.loads(file.read_text(encoding="utf-8"))
    check_layers(read, file)
    return read
