"""The contract of text encoders: texts -> token states of a frozen, pretrained network."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from snapgen_pl.conditioning.condition import TextStates
from snapgen_pl.pretrained_folder import pretrained_folder

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_OPTIONS = ("tokenizer_config.json", "special_tokens_map.json")


class TextEncoder(ABC):
    """A network of transformers, frozen, and its tokenizer, from a folder or the Hugging Face hub.

    Constructing one reads its configuration and its tokenizer's files; its weights are read when :meth:`encode` is
    first called. It is no module, and so in nobody's checkpoint.

    Args:
        path: a folder, or a name on the hub.
        subfolder: where under ``path`` the configuration and the weights lie.
        tokenizer_subfolder: where under ``path`` the tokenizer's files lie.
        tokens: tokens a text is padded to; None for as many as the network has positions.

    Attributes:
        model_type: what the configuration has to call itself.
        vocabulary: the files that make a tokenizer where there is no tokenizer.json.
        masked: whether padding is masked, in the network and after it.
        tokens: context tokens a text.
        context_dim: width of a token.
        identity: SHA-256 over configuration and tokenizer: tells encoders apart without reading weights.

    Raises:
        ValueError: if files are missing or are those of something else, or there are no so many positions.
    """

    model_type: ClassVar[str]
    vocabulary: ClassVar[tuple[str, ...]]
    masked: ClassVar[bool]

    def __init__(self, path: str, subfolder: str, tokenizer_subfolder: str, tokens: int | None) -> None:
        self._path, self._subfolder = path, subfolder
        tokenizer_files = (TOKENIZER, *self.vocabulary, *TOKENIZER_OPTIONS)
        names = [_join(subfolder, CONFIG), *(_join(tokenizer_subfolder, name) for name in tokenizer_files)]
        folder = pretrained_folder(path, names)
        self._tokenizer_folder = folder / tokenizer_subfolder
        config_file = _config_file(folder / subfolder)
        config = self._read(config_file)
        self.context_dim, self._positions = config["hidden_size"], config["max_position_embeddings"]
        self.tokens = self._positions if tokens is None else tokens
        if not 1 <= self.tokens <= self._positions:
            raise ValueError(f"tokens is {tokens}; {path} has positions for 1 to {self._positions}")
        present = [file for name in tokenizer_files if (file := self._tokenizer_folder / name).is_file()]
        self._check_tokenizer({file.name for file in present})
        self.identity = _digest(f"{type(self).__name__} {self.tokens}", [config_file, *present])
        self._loaded: tuple[PreTrainedTokenizerBase, PreTrainedModel] | None = None

    @staticmethod
    @abstractmethod
    def classes() -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """Imports the classes of the tokenizer and of the network."""

    def fingerprint(self) -> str:
        """SHA-256 over the identity and the file of weights, which is read for it."""
        with self._weights().open("rb") as opened:
            weights = hashlib.file_digest(opened, "sha256").hexdigest()
        return hashlib.sha256(f"{self.identity} {weights}".encode()).hexdigest()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextStates:
        """Texts -> the network's last hidden states, on the CPU.

        Raises:
            ValueError: if a text is longer than ``tokens``, or the weights are missing or damaged.
        """
        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, network = self._loaded
        encoded = tokenizer(list(texts), padding="max_length", max_length=self.tokens, truncation=False)
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            if len(ids) > self.tokens:
                room = f"there is room for {self.tokens}, and for {self._positions} at most"
                raise ValueError(f"{text!r} takes {len(ids)} tokens; {room}: shorten it, or set the encoder's tokens")
        ids_BS = torch.tensor(encoded["input_ids"])
        mask_BS = torch.tensor(encoded["attention_mask"]).bool() if self.masked else None
        return TextStates(network(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state, mask_BS)

    def release(self) -> None:
        """Lets go of the network; :meth:`encode` loads it again."""
        self._loaded = None

    def _read(self, file: Path) -> dict[str, int]:
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error}); download it again") from error
        config = config.get("text_config", config)  # a whole CLIP keeps its text encoder's inside its own
        if (model_type := config.get("model_type")) != self.model_type:
            raise ValueError(
                f"{file} is of the type {model_type}, {type(self).__name__} reads {self.model_type}; give another "
                "folder, or the subfolder that has it"
            )
        sizes = {key: config[key] for key in ("hidden_size", "max_position_embeddings") if key in config}
        if len(sizes) < 2:
            raise ValueError(f"{file} must say hidden_size and max_position_embeddings; add them")
        return sizes

    def _check_tokenizer(self, names: set[str]) -> None:
        # Without the files transformers would make up a tokenizer that knows no word.
        if TOKENIZER not in names and not names.issuperset(self.vocabulary):
            raise ValueError(
                f"no tokenizer in {self._tokenizer_folder}: it needs {TOKENIZER}, or {' and '.join(self.vocabulary)}; "
                "download them there, or give tokenizer_subfolder"
            )

    def _weights(self) -> Path:
        # Asked for again: constructing the encoder downloaded small files alone.
        folder = pretrained_folder(self._path, [_join(self._subfolder, name) for name in (CONFIG, WEIGHTS)])
        if not (file := folder / self._subfolder / WEIGHTS).is_file():
            raise ValueError(f"no {WEIGHTS} in {file.parent}; download it there (pickled .bin weights are not read)")
        return file

    def _load(self) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        file = self._weights()
        tokenizer_class, network_class = self.classes()
        try:
            tokenizer = tokenizer_class.from_pretrained(self._tokenizer_folder, local_files_only=True)
            with _errors_alone():
                loaded: Any = network_class.from_pretrained(
                    file.parent,
                    dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except Exception as error:  # safetensors, tokenizers and transformers have their own errors for damaged files
            raise ValueError(f"{file.parent} cannot be loaded ({error}); download its files again") from error
        network, report = loaded
        if missing := report["missing_keys"]:
            raise ValueError(
                f"{file} lacks {len(missing)} weights, such as {min(missing)}: it is another network's; download it "
                "again"
            )
        return tokenizer, network.eval().requires_grad_(False)


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Keeps transformers from listing the hundreds of weights of a whole CLIP that its text encoder does not need."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)


def _join(subfolder: str, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _config_file(folder: Path) -> Path:
    if (file := folder / CONFIG).is_file():
        return file
    if inside := sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}")):
        raise ValueError(f"no {CONFIG} in {folder}; give the subfolder that has the encoder: {', '.join(inside)}")
    raise ValueError(f"no {CONFIG} in {folder}; download the whole network there, or give another folder")


def _digest(head: str, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(head.encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"\n{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
