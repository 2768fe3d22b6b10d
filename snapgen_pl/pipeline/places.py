"""Where a pipeline's parts lie in its folder, and what their config.json say: nothing of diffusers is imported."""

import copy
from pathlib import Path
from typing import Any

from snapgen_pl.trained_run import arguments
from snapgen_pl.whole_files import read_json

AGAIN = "get the folder again"
DENOISER, CONDITIONER, AUTOENCODER, DECODER = "unet", "conditioner", "vae", "decoder"
# Text encoders, in the order in which a conditioner has them.
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def config_of(folder: Path) -> dict[str, Any]:
    """What a part's config.json says.

    Raises:
        ValueError: where it is missing or damaged.
    """
    return read_json(folder / "config.json", AGAIN)


def network_of(folder: Path) -> dict[str, Any]:
    """The class and arguments of a part of this project, as a run's config.yaml has them; not checked further.

    Raises:
        ValueError: where its config.json is missing or does not say them.
    """
    network = config_of(folder).get("network")
    if not isinstance(network, dict):
        raise ValueError(f"{folder / 'config.json'} names no network of this project; {AGAIN}")
    return network


def placed(network: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """A conditioner's configuration with its text encoders at their places in a pipeline's folder.

    Args:
        network: the configuration.
        folder: of the pipeline; None leaves open where that is.

    Raises:
        ValueError: where its encoders are damaged.
    """
    moved = copy.deepcopy(network)
    encoders = arguments(moved).get("encoders")
    if encoders is None:
        return moved
    if not isinstance(encoders, dict) or not all(isinstance(each, dict) for each in encoders.values()):
        raise ValueError(f"a conditioner's encoders are classes by name, not {encoders!r}; {AGAIN}")
    for encoder, place, tokenizer in zip(encoders.values(), TEXT_ENCODERS, TOKENIZERS, strict=False):
        assert isinstance(encoder, dict), encoder
        # The embedded one takes no path: what is in the folder has one.
        encoder["class_path"] = str(encoder.get("class_path")).replace(".MiniLM", ".PlacedMiniLM")
        found = arguments(encoder)
        found |= {"path": folder, "subfolder": place, "tokenizer_subfolder": tokenizer}
        if folder is None:
            del found["path"]
    return moved
