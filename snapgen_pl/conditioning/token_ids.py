"""Texts as token ids, without the network that reads them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedTokenizerBase


class TokenIds(NamedTuple):
    """Texts as a network reads them.

    Attributes:
        ids_BS: int64, each row padded on the right.
        mask_BS: bool, True where there is text.
    """

    ids_BS: Tensor
    mask_BS: Tensor


def token_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], tokens: int, truncate: bool, remedy: str
) -> TokenIds:
    """Texts -> token ids.

    Args:
        tokenizer: of transformers.
        texts: one a row.
        tokens: what a text is padded to.
        truncate: whether a longer text loses what is over, its end mark kept, or is refused.
        remedy: for a text that is refused, after the room there is.

    Raises:
        ValueError: for a text that is longer and not to be cut.
    """
    # Padded on the right whatever the tokenizer's own habit: Gemma's is to generate, and so on the left.
    encoded = tokenizer(list(texts), padding="max_length", max_length=tokens, truncation=truncate, padding_side="right")
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        if len(ids) > tokens:
            raise ValueError(f"{text!r} takes {len(ids)} tokens; there is room for {tokens}{remedy}")
    return TokenIds(torch.tensor(encoded["input_ids"]), torch.tensor(encoded["attention_mask"]).bool())


class SavedTokenizer:
    """The tokenizer of a text encoder, which needs none of its weights; its files are read when it is first asked.

    Args:
        folder: where its files lie.
        kind: the name of its class in transformers.
        tokens: what a text is padded to.
        truncate: cuts longer texts; without it they are refused.
    """

    def __init__(self, folder: str, kind: str, tokens: int, truncate: bool = False) -> None:
        self.folder, self.kind, self.tokens, self.truncate = Path(folder), kind, tokens, truncate

    def __call__(self, texts: Sequence[str]) -> TokenIds:
        """See :func:`token_ids`.

        Raises:
            ValueError: for a text that is too long, and for files that are missing or damaged.
        """
        return token_ids(self.loaded, texts, self.tokens, self.truncate, ": shorten it")

    @cached_property
    def loaded(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of transformers.

        Raises:
            ValueError: for files that are missing or damaged.
        """
        import transformers

        kind = getattr(transformers, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
            raise ValueError(f"{self.kind} is no tokenizer of transformers; export the run again")
        # Without files transformers would make up a tokenizer that knows no word.
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            raise ValueError(f"no tokenizer in {self.folder}; export the run again")
        try:
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # tokenizers and transformers have their own errors for damaged files
            raise ValueError(
                f"the tokenizer in {self.folder} cannot be loaded ({error}); export the run again"
            ) from error
        return tokenizer
