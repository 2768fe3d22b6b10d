"""What a text encoder made of captions, on disk.

A shard holds ``tokens`` (T, D), those of N captions one behind the other, ``token_end`` (N,), where each caption's end,
and ``pooled`` (N, P), where the encoder gives that. Padding that is masked is left out; padding that is attended to is
a state like others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snapgen_pl.conditioning.condition import TextStates
from snapgen_pl.config_files import Value
from snapgen_pl.data.shards import Array, Manifest, ShardFolder, Split, SplitShards

FORMAT = "snapgen_pl text states 1"


class TextFacts(NamedTuple):
    """What states depend on besides their captions.

    Attributes:
        encoder: identity of the encoder.
        weights: SHA-256 over the encoder's identity and weights.
        tokens: tokens that a text is padded to.
        masked: whether padding is masked, and so not stored.
        dtype: what states are stored in.
    """

    encoder: str
    weights: str
    tokens: int
    masked: bool
    dtype: str

    def as_json(self) -> dict[str, Value]:
        """As a plan holds them."""
        return dict(self._asdict())

    @staticmethod
    def of(folder: Path, facts: Mapping[str, Value]) -> "TextFacts":
        """The facts of a manifest.

        Raises:
            ValueError: where one is missing or of another type.
        """
        match facts:
            case {
                "encoder": str(encoder),
                "weights": str(weights),
                "tokens": int(tokens),
                "masked": bool(masked),
                "dtype": str(dtype),
            }:
                return TextFacts(encoder, weights, tokens, masked, dtype)
        raise ValueError(f"the manifest in {folder} does not say what its states are of; encode again")


class PackedStates(NamedTuple):
    """States as they are stored, of a batch of captions.

    Attributes:
        tokens_TD: those of all captions one behind the other, masked padding left out.
        length_B: tokens of each caption.
        pooled_BP: one vector a caption; None where the encoder gives none.
    """

    tokens_TD: Tensor
    length_B: Tensor
    pooled_BP: Tensor | None


def packed(states: TextStates, dtype: str) -> PackedStates:
    """Packs what an encoder gives.

    Args:
        states: of a batch of captions.
        dtype: float16 or float32.

    Raises:
        ValueError: where the type cannot hold a state.
    """
    kind = getattr(torch, dtype)
    length_B = _lengths(states)
    kept_BS = torch.arange(states.tokens_BSD.shape[1], device=length_B.device) < length_B[:, None]
    tokens_TD = states.tokens_BSD[kept_BS].to(kind)
    pooled_BP = None if states.pooled_BP is None else states.pooled_BP.to(kind)
    if not all(part.isfinite().all() for part in (tokens_TD, pooled_BP) if part is not None):
        raise ValueError(f"the text encoder gives states that {dtype} cannot hold; set --model.dtype float32")
    return PackedStates(tokens_TD, length_B, pooled_BP)


def text_tensors(parts: Sequence[PackedStates]) -> dict[str, Tensor]:
    """What a shard holds, of the states of its captions, in order."""
    tensors = {
        "tokens": torch.cat([part.tokens_TD for part in parts]),
        "token_end": torch.cat([part.length_B for part in parts]).cumsum(0),
    }
    pooled = [part.pooled_BP for part in parts if part.pooled_BP is not None]
    return tensors | ({"pooled": torch.cat(pooled)} if pooled else {})


def _lengths(states: TextStates) -> Tensor:
    """Tokens of each text, up to the last that is not masked."""
    batch, tokens = states.tokens_BSD.shape[:2]
    device = states.tokens_BSD.device
    if states.mask_BS is None:
        return torch.full((batch,), tokens, device=device)
    return (states.mask_BS * torch.arange(1, tokens + 1, device=device)).amax(dim=1)


class StoredTexts(SplitShards):
    """The states of one split's captions; :class:`~snapgen_pl.data.conditions.StoredStates`.

    Args:
        folder: where the shards lie.
        manifest: what they are.
        split: which.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split) -> None:
        super().__init__(folder, manifest, split)
        self.facts = TextFacts.of(folder, self.plan.facts)

    def load(self, indices: Sequence[int]) -> TextStates:
        """The states of these captions, padded with zeros: tokens (B, S, D) as stored, S the encoder's tokens."""
        places = [self.at(index) for index in indices]
        texts = [_tokens(arrays, row) for arrays, row in places]
        tokens_BSD = np.zeros((len(texts), self.facts.tokens, texts[0].shape[1]), texts[0].dtype)
        for row, tokens_SD in enumerate(texts):
            tokens_BSD[row, : len(tokens_SD)] = tokens_SD
        length_B = torch.tensor([len(tokens_SD) for tokens_SD in texts])
        mask_BS = torch.arange(self.facts.tokens) < length_B[:, None]
        pooled = [arrays["pooled"][row] for arrays, row in places if "pooled" in arrays]
        return TextStates(
            torch.from_numpy(tokens_BSD),
            mask_BS if self.facts.masked else None,
            torch.from_numpy(np.stack(pooled)) if pooled else None,
        )


def _tokens(arrays: Mapping[str, Array], row: int) -> Array:
    end = arrays["token_end"]
    tokens: Array = arrays["tokens"][end[row - 1] if row else 0 : end[row]]
    return tokens


class TextStateFolder(ShardFolder):
    """Shards that ``predict`` with :class:`~snapgen_pl.modules.encode_texts.EncodeTexts` wrote.

    Args:
        folder: where they lie.

    Raises:
        ValueError: where there are none, or they are of something else.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, FORMAT, "text states")
        self.facts = TextFacts.of(folder, self.manifest.plan.facts)

    def split(self, split: Split) -> StoredTexts:
        """The states of a split's captions."""
        return StoredTexts(self.folder, self.manifest, split)

    def check_encoder(self, name: str, identity: str) -> None:
        """Checks that the states are those that a conditioner's encoder would give.

        Raises:
            ValueError: where they are not.
        """
        if self.facts.encoder != identity:
            raise ValueError(
                f"the text states in {self.folder} are of another encoder than the run's {name} "
                f"({self.facts.encoder[:12]} there, {identity[:12]} here); encode again, or set the encoder that made "
                "them"
            )
