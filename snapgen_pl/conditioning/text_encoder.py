"""The contract of text encoders: texts -> token states of a frozen, pretrained network."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from snapgen_pl.asked_size import check_layers
from snapgen_pl.conditioning.condition import TextStates
from snapgen_pl.conditioning.encoder_weights import CONFIG, files_digest, inside, weight_files
from snapgen_pl.conditioning.token_ids import token_ids
from snapgen_pl.precision import DType
from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.pretrained_network import lacking, read_network, read_tokenizer
from snapgen_pl.tf32 import tf32

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER = "tokenizer.json"
TOKENIZER_OPTIONS = ("tokenizer_config.json", "special_tokens_map.json")


class TextEncoder(ABC):
    """A network of transformers, frozen, and its tokenizer, from a folder or the Hugging Face hub.

    Constructing one reads its configuration and its tokenizer's files; its weights are read when :meth:`encode` is
    first called. It is no module, and so in nobody's checkpoint; copies of its owner share it.

    Args:
        path: a folder, or a name on the hub.
        subfolder: where under ``path`` the configuration and the weights lie.
        tokenizer_subfolder: where under ``path`` the tokenizer's files lie.
        tokens: tokens a text is padded to; None for as many as the network has positions.
        truncate: whether a longer text loses what is over, its end mark kept, or is refused.
        dtype: what the network computes in.
        options: what else its states depend on, in words; none where it is as most use it.
        revision: branch, tag or commit on the hub.

    Attributes:
        model_type: what the configuration has to call itself.
        vocabulary: the files that make a tokenizer where there is no tokenizer.json; none where nothing else does.
        sizes: the configuration's keys of the width and, where positions are numbered, of how many there are.
        masked: whether padding is masked, in the network and after it.
        tokens: context tokens a text.
        context_dim: width of a token.
        pooled_dim: width of the pooled vector, one a text; None where it gives none.
        tokenizer_files: those that make the tokenizer, all in one folder.
        identity: SHA-256 over configuration, tokenizer, and what of the above changes token states: tells encoders
            apart without reading weights. Neither the dtype nor whether there is a pooled vector changes it.

    Raises:
        ValueError: if files are missing or are those of something else, or there are no so many positions.
    """

    model_type: ClassVar[str]
    vocabulary: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[str, ...]] = ("hidden_size", "max_position_embeddings")
    masked: ClassVar[bool]
    pooled_dim: int | None = None

    def __init__(
        self,
        path: str,
        subfolder: str,
        tokenizer_subfolder: str,
        tokens: int | None,
        truncate: bool,
        dtype: DType = "float32",
        options: Sequence[str] = (),
        revision: str | None = None,
    ) -> None:
        self._path, self._subfolder, self._revision = path, subfolder, revision
        self.truncate, self.dtype = truncate, dtype
        tokenizer_files = (TOKENIZER, *self.vocabulary, *TOKENIZER_OPTIONS)
        names = [inside(subfolder, CONFIG), *(inside(tokenizer_subfolder, name) for name in tokenizer_files)]
        folder = pretrained_folder(path, names, revision)
        tokenizer_folder = folder / tokenizer_subfolder
        config_file = _config_file(folder / subfolder)
        self._config = self._read(config_file)
        self.context_dim, *positions = (self._config[key] for key in self.sizes)
        self.tokens, self._room = self._tokens(tokens, positions)
        self.tokenizer_files = [file for name in tokenizer_files if (file := tokenizer_folder / name).is_file()]
        self._check_tokenizer(tokenizer_folder)
        # An encoder that is as it always was keeps its identity, and files made with it serve on.
        words = [type(self).__name__, str(self.tokens), *options, *(["truncated"] if truncate else [])]
        self.identity = _digest(" ".join(words), [config_file, *self.tokenizer_files])
        self._device = torch.device("cpu")
        self._loaded: tuple[PreTrainedTokenizerBase, PreTrainedModel] | None = None

    @abstractmethod
    def classes(self) -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """Imports the classes of the tokenizer and of the network."""

    def settings(self) -> Mapping[str, Any]:
        """What the network's configuration is to say in place of what its file says."""
        return {}

    def run(self, network: "PreTrainedModel", ids_BS: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Token ids -> token states (B, S, D) and pooled vectors (B, P), or None where it gives none."""
        return network(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state, None

    def fingerprint(self) -> str:
        """SHA-256 over the identity and all files of weights, which are read for it."""
        weights = files_digest(self._weight_files())
        return hashlib.sha256(f"{self.identity} {weights}".encode()).hexdigest()

    def load(self, dtype: DType) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        """Reads tokenizer and network anew, frozen and on the CPU; :meth:`encode` keeps its own.

        Args:
            dtype: what the network is to compute in.

        Raises:
            ValueError: if the weights are missing or damaged.
        """
        folder = self._weight_files()[0].parent
        tokenizer_class, network_class = self.classes()
        network, missing = read_network(network_class, folder, getattr(torch, dtype), self.settings())
        if missing:
            raise ValueError(self.lacks(folder, missing))
        return read_tokenizer(tokenizer_class, self.tokenizer_files[0].parent), network

    def parameters(self) -> int:
        """How many its network has, by its configuration: no weights are read."""
        _, network_class = self.classes()
        with torch.device("meta"):
            network: Any = network_class(network_class.config_class.from_dict({**self._config, **self.settings()}))  # type: ignore[union-attr]
        return sum(parameter.numel() for parameter in network.parameters())

    def to(self, device: torch.device) -> Self:
        """Moves the network; one that is not loaded yet will be there."""
        if device != self._device:
            self._device = device
            if self._loaded is not None:
                with torch.inference_mode(False):
                    torch.nn.Module.to(self._loaded[1], device)
        return self

    def hold(self, tokenizer: "PreTrainedTokenizerBase", network: "PreTrainedModel") -> None:
        """Encodes through these, which others have loaded, instead of reading its own files."""
        frozen = torch.nn.Module.eval(network).requires_grad_(False)
        self._loaded, self._device = (tokenizer, frozen), network.device

    def encode(self, texts: Sequence[str]) -> TextStates:
        """Texts -> the network's states of them, on its device.

        They are fp32 whatever the network computes in, for they are joined with those of others; who stores them
        chooses what to round them to.

        Raises:
            ValueError: if a text is longer than ``tokens`` and not to be cut, if the weights are missing or damaged, or
                if the states are more than fp16 can hold.
        """
        # Whoever asks first, an encoder made while validating serves training too; and autocast, and the rounding that
        # a run allows itself, are the trained network's.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self._device.type, enabled=False),
            tf32(False),
        ):
            if self._loaded is None:
                tokenizer, network = self.load(self.dtype)
                self._loaded = tokenizer, network.to(self._device)  # type: ignore[arg-type]  # not in its stubs
            tokenizer, network = self._loaded
            ids_BS, mask_BS = self._tokenize(tokenizer, texts)
            tokens_BSD, pooled_BP = self.run(network, ids_BS, mask_BS)
            if self.dtype == "float16" and not tokens_BSD.isfinite().all():
                raise ValueError(f"{type(self).__name__} leaves the range of float16; set its dtype to bfloat16")
            return TextStates(tokens_BSD.float(), mask_BS, None if pooled_BP is None else pooled_BP.float())

    def encode_once(self, texts: Sequence[str]) -> TextStates:
        """As :meth:`encode`, but lets go of a network that was not loaded before: nobody may ask again."""
        kept = self._loaded is not None
        states = self.encode(texts)
        if not kept:
            self.release()
        return states

    def release(self) -> None:
        """Lets go of the network; :meth:`encode` loads it again."""
        self._loaded = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: an encoder of 5 B parameters is not to be held twice."""
        return self

    def _weight_files(self) -> list[Path]:
        return weight_files(self._path, self._subfolder, self._revision)

    def _tokenize(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        remedy = f"{self._room}: shorten it, or set the encoder's tokens or truncate"
        ids_BS, mask_BS = token_ids(tokenizer, texts, self.tokens, self.truncate, remedy)
        return ids_BS.to(self._device), mask_BS.to(self._device) if self.masked else None

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error}); download it again") from error
        config: dict[str, Any] = whole
        if "text_config" in whole:  # a whole CLIP keeps its text encoder's inside its own, and projects both alike
            config = whole["text_config"] | {key: whole[key] for key in ("projection_dim",) if key in whole}
        if (model_type := config.get("model_type")) != self.model_type:
            raise ValueError(
                f"{file} is of the type {model_type}, {type(self).__name__} reads {self.model_type}; give another "
                "folder, or the subfolder that has it"
            )
        if not all(key in config for key in self.sizes):
            raise ValueError(f"{file} must say {' and '.join(self.sizes)}; add them")
        check_layers(config, file)  # for `parameters`, which needs no weights that would bound them
        return config

    def _tokens(self, tokens: int | None, positions: Sequence[int]) -> tuple[int, str]:
        """How many, and the room there is, in words."""
        most = positions[0] if positions else None
        count = most if tokens is None else tokens
        if count is None or count < 1 or (most is not None and count > most):
            room = "it must be >= 1" if most is None else f"{self._path} has positions for 1 to {most}"
            raise ValueError(f"tokens is {tokens}; {room}")
        return count, "" if most is None else f", and for {most} at most"

    def _check_tokenizer(self, folder: Path) -> None:
        names = {file.name for file in self.tokenizer_files}
        # Without the files transformers would make up a tokenizer that knows no word.
        if TOKENIZER not in names and not (self.vocabulary and names.issuperset(self.vocabulary)):
            needed = " or ".join(filter(None, (TOKENIZER, " and ".join(self.vocabulary))))
            raise ValueError(
                f"no tokenizer in {folder}: it needs {needed}; download them there, or give tokenizer_subfolder"
            )

    def lacks(self, folder: Path, missing: set[str]) -> str:
        """What to tell whoever gave a folder whose weights are not all there."""
        return lacking(folder, missing)


def _config_file(folder: Path) -> Path:
    if (file := folder / CONFIG).is_file():
        return file
    if inner := sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}")):
        raise ValueError(f"no {CONFIG} in {folder}; give the subfolder that has the encoder: {', '.join(inner)}")
    raise ValueError(f"no {CONFIG} in {folder}; download the whole network there, or give another folder")


def _digest(head: str, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(head.encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"\n{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
