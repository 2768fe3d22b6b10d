"""The pretrained networks of transformers that judge images, by path."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.conditioning.encoder_weights import CONFIG, files_digest, weight_files
from snapgen_pl.conditioning.text_encoder import TOKENIZER, TOKENIZER_OPTIONS
from snapgen_pl.images import check_uint8
from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.pretrained_network import lacking, read_network, read_tokenizer
from snapgen_pl.tf32 import tf32

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T", bound="PreTrainedTokenizerBase")


class JudgeNetwork(NamedTuple):
    """A network that judges.

    Attributes:
        network: frozen, in fp32 and on the CPU.
        digest: SHA-256 over its configuration and weights.
    """

    network: "PreTrainedModel"
    digest: str


class PaddedTexts(NamedTuple):
    """Texts as tokens, in rows of one length.

    Attributes:
        ids_BS: int64.
        mask_BS: 1 where there is text.
        truncated_B: bool, which were longer and lost what is over.
    """

    ids_BS: Tensor
    mask_BS: Tensor
    truncated_B: Tensor


class Normalisation(NamedTuple):
    """The mean and the deviation of pixels in [0, 1], by channel, that a network was trained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Images in [0, 255] -> what the network reads."""
        mean, std = (image_BCHW.new_tensor(values).view(3, 1, 1) for values in self)
        return (image_BCHW / 255 - mean) / std


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def judge_network(path: str, kind: str, model_type: str) -> JudgeNetwork:
    """Reads a network.

    Args:
        path: its folder, or its name on the Hugging Face hub.
        kind: the name of its class in transformers.
        model_type: what its configuration has to call itself.

    Raises:
        ValueError: if files are missing or damaged, or are another network's.
    """
    import transformers

    files = weight_files(path, "")
    folder = files[0].parent
    config = folder / CONFIG
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} says no model_type ({error!r}); download it again") from error
    if found != model_type:
        raise ValueError(f"{config} is of the type {found}, {kind} reads {model_type}; give another folder")
    network, missing = read_network(getattr(transformers, kind), folder, torch.float32, {})
    if missing:
        raise ValueError(lacking(folder, missing))
    return JudgeNetwork(network, hashlib.sha256(files_digest([config, *files]).encode()).hexdigest())


def judge_tokenizer(path: str, kind: type[T], vocabulary: tuple[str, ...]) -> T:
    """Reads a tokenizer.

    Args:
        path: its folder, or its name on the Hugging Face hub.
        kind: its class.
        vocabulary: the files that make it where there is no tokenizer.json.

    Raises:
        ValueError: if files are missing or damaged.
    """
    folder = pretrained_folder(path, [TOKENIZER, *vocabulary, *TOKENIZER_OPTIONS])
    # Without files transformers would make up a tokenizer that knows no word.
    if not (folder / TOKENIZER).is_file() and not all((folder / name).is_file() for name in vocabulary):
        raise ValueError(f"no tokenizer in {folder}: it needs {TOKENIZER} or {' and '.join(vocabulary)}; download them")
    tokenizer = read_tokenizer(kind, folder)
    assert isinstance(tokenizer, kind)
    return tokenizer


def padded(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], tokens: int, device: torch.device
) -> PaddedTexts:
    """Tokenizes texts for a network that reads so many tokens of each, marks included.

    Args:
        tokenizer: the network's.
        texts: any; what is over is cut off before the end mark.
        tokens: of each row.
        device: for the tensors.
    """
    lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    read = tokenizer(list(texts), padding="max_length", truncation=True, max_length=tokens, return_tensors="pt")
    truncated_B = torch.tensor(lengths, device=device) > tokens
    return PaddedTexts(read["input_ids"].to(device), read["attention_mask"].to(device), truncated_B)


@contextmanager
def judging(device: torch.device) -> Iterator[None]:
    """In fp32 without gradients, whatever precision images are drawn in."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), tf32(False):
        yield


def resized(image_BCHW: Tensor, side: int) -> Tensor:
    """uint8 images -> their middle squares, side x side, fp32 in [0, 255]: the shorter side is resized to ``side``.

    Bicubic with antialiasing, along rows, then along columns, each rounded to whole numbers: as PIL does it, through
    which CLIP, BLIP and ImageReward are fed.
    """
    check_uint8(image_BCHW)
    height, width = image_BCHW.shape[-2:]
    shorter = min(height, width)
    size = side * height // shorter, side * width // shorter
    large = image_BCHW.float()
    for part in ((height, size[1]), size):
        large = F.interpolate(large, size=part, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (round((length - side) / 2) for length in size)
    return large[..., top : top + side, left : left + side]


def require_file(path: Path, what: str) -> None:
    """Raises ValueError where a file that somebody else publishes is not there.

    Args:
        path: of the file.
        what: it is, and where to get it.
    """
    if not path.expanduser().is_file():
        raise ValueError(f"there is no file {path}; give {what}")
