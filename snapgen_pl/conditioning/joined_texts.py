"""Texts through several encoders at once, any of which may be missing."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from snapgen_pl.conditioning.condition import Condition, TextStates, texts
from snapgen_pl.conditioning.partial_texts import PartialTexts
from snapgen_pl.conditioning.text_conditioner import check_block, joined
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.models.denoiser import Conditioning


class JoinedTexts(PartialTexts):
    """One learned token, then blocks of token states, each of one encoder or of several side by side.

    Training leaves encoders out at random, each by itself, so that any of them will do later. An encoder that a sample
    does without leaves zeros in its part of the width; a block that is left without any is masked, as if it were not
    there. Padding is masked where its encoder masks it, and zero where the block goes on beside it. Nothing asked for
    is the learned token alone, which every sample has.

    That SnapGen has CLIP-L, CLIP-G and Gemma-2-2b, and drops each, is reported; the join, ``[[clip_l, clip_g],
    [gemma]]`` at 2304, and the rate are decided here.

    Args:
        encoders: by the names that stored states go by; their order is that of Texts.kept_BE.
        blocks: names of the encoders of each block, which have the same number of tokens; each encoder is in one.
        context_dim: width of a token, the denoiser's; narrower blocks are padded with zeros.
        dropout: probability that a training sample loses an encoder, in [0, 1). 0.464 is SD3's, and leaves 10 % of the
            samples without any of three; one encoder alone wants 0.1.
        pooled: gives the encoders' pooled vectors too, side by side, zeros for those that a sample does without.

    Attributes:
        null: the learned token; standard normal at its start, and so of the scale of Gemma's states.

    Raises:
        ValueError: if encoders and blocks do not fit together, or the dropout is outside [0, 1).
    """

    def __init__(
        self,
        encoders: dict[str, TextEncoder],
        blocks: list[list[str]],
        context_dim: int = 2304,
        dropout: float = 0.464,
        pooled: bool = False,
    ) -> None:
        _check_names(encoders, blocks)
        for block in blocks:
            check_block({name: encoders[name] for name in block}, context_dim)
        if pooled and (without := [name for name, encoder in encoders.items() if encoder.pooled_dim is None]):
            raise ValueError(
                f"pooled is set, but not for {' and '.join(without)}; set it for all encoders, or not here"
            )
        super().__init__(encoders, 1 + sum(encoders[block[0]].tokens for block in blocks), context_dim, dropout)
        self.blocks, self.pooled = blocks, pooled
        self.null = nn.Parameter(torch.randn(context_dim))

    def ready(self, folder: Path, classes: tuple[str, ...]) -> str:
        """Says what is joined; see Conditioner.ready."""
        blocks = "".join(f", {' | '.join(block)} ({self._encoders[block[0]].tokens})" for block in self.blocks)
        return f"texts: a learned token{blocks}: {self.tokens} tokens, {self.context_dim} wide"

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward. There is a mask where anything could be masked, whether or not anything is.

        Raises:
            ValueError: where stored states, or ``kept_BE``, are not of these encoders.
        """
        asked = texts(condition)
        kept = self.kept(asked)
        parts = {name: _left_out(states, kept.get(name)) for name, states in self.states(asked).items()}
        blocks = [[parts[name] for name in block] for block in self.blocks]
        context_BSD = joined([[part.tokens_BSD for part in block] for block in blocks], self.context_dim)
        null_BSD = self.null.expand(len(context_BSD), 1, -1)
        pooled = [part.pooled_BP for part in parts.values() if self.pooled and part.pooled_BP is not None]
        return Conditioning(
            torch.cat((null_BSD, context_BSD), dim=1), _mask(blocks), torch.cat(pooled, dim=-1) if pooled else None
        )


def _left_out(states: TextStates, kept_B: Tensor | None) -> TextStates:
    """The states with zeros, and no tokens to attend to, for samples that do without them; and zeros for padding."""
    tokens_BSD, mask_BS, pooled_BP = states
    if kept_B is not None:
        kept_BS = kept_B[:, None].expand(tokens_BSD.shape[:2])
        mask_BS = kept_BS if mask_BS is None else mask_BS & kept_BS
        pooled_BP = None if pooled_BP is None else pooled_BP.masked_fill(~kept_B[:, None], 0)
    if mask_BS is not None:
        tokens_BSD = tokens_BSD.masked_fill(~mask_BS[..., None], 0)
    return TextStates(tokens_BSD, mask_BS, pooled_BP)


def _mask(blocks: Sequence[Sequence[TextStates]]) -> Tensor | None:
    """Where there is anything to attend to, the learned token included; None where that is everywhere by nature."""
    masks = [_block_mask(block) for block in blocks]
    if all(mask is None for mask in masks):
        return None
    whole = [
        block[0].tokens_BSD.new_ones(block[0].tokens_BSD.shape[:2], dtype=torch.bool) if mask is None else mask
        for block, mask in zip(blocks, masks, strict=True)
    ]
    return torch.cat((torch.ones_like(whole[0][:, :1]), *whole), dim=1)


def _block_mask(block: Sequence[TextStates]) -> Tensor | None:
    """Where any encoder of a block has a token; None where one of them has it everywhere."""
    masks = [part.mask_BS for part in block if part.mask_BS is not None]
    return reduce(torch.logical_or, masks) if len(masks) == len(block) else None


def _check_names(encoders: Mapping[str, TextEncoder], blocks: Sequence[Sequence[str]]) -> None:
    if not encoders or not all(blocks):
        raise ValueError("there must be an encoder at least, and one in every block")
    named = [name for block in blocks for name in block]
    if sorted(named) != sorted(encoders):
        raise ValueError(f"the blocks name {named}, the encoders are {list(encoders)}; name each in one block, once")
