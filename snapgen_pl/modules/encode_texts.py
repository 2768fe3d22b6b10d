"""Encodes captions once, so that training need not: wiring only."""

from collections.abc import Sequence
from typing import Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from snapgen_pl.conditioning.condition import texts
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.data.encoding_data import encoding_data
from snapgen_pl.data.requests import Request
from snapgen_pl.data.shards import Plan
from snapgen_pl.data.text_states import FORMAT, PackedStates, TextFacts, packed, text_tensors


class EncodeTexts(L.LightningModule):
    """Predicts what a text encoder makes of each caption.

    Args:
        encoder: what encodes.
        dtype: what states are stored in.

    Attributes:
        folder: what the shards' folder is called.
    """

    folder = "texts"

    def __init__(self, encoder: TextEncoder, dtype: Literal["float16", "float32"] = "float16") -> None:
        super().__init__()
        self.encoder, self.dtype_stored = encoder, dtype

    def plan(self) -> Plan:
        """What is to be encoded; reads the encoder's weights through, for their SHA-256."""
        data = encoding_data(self.trainer, "caption")
        encoder = self.encoder
        rank_zero_info(f"reading the weights of {type(encoder).__name__}")
        facts = TextFacts(encoder.identity, encoder.fingerprint(), encoder.tokens, encoder.masked, self.dtype_stored)
        return data.plan(FORMAT, facts.as_json())

    def predict_step(self, batch: Request, batch_idx: int) -> PackedStates:
        """The states of a batch of captions, as they will be stored: a shard's wait for each other in memory."""
        states = self.encoder.to(self.device).encode(texts(batch.condition).captions)
        return packed(states, self.dtype_stored)

    def shard(self, predictions: Sequence[PackedStates], positions: range) -> dict[str, Tensor]:
        """The tensors of a shard, of the predictions of its batches, in order."""
        return text_tensors(predictions)
