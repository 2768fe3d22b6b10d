"""Texts through several encoders, any of which a sample may do without."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.conditioning.class_conditioner import check_dropout
from snapgen_pl.conditioning.condition import Condition, Texts, TextStates, texts
from snapgen_pl.conditioning.text_conditioner import Encoder, TextConditioner


class PartialTexts(TextConditioner):
    """Which encoders a sample keeps is in Texts.kept_BE; nothing asked for is a text that keeps none.

    Args:
        encoders: by the names that stored states go by; their order is that of Texts.kept_BE.
        tokens: context tokens a text.
        context_dim: width of a token; the denoiser's context_dim.
        dropout: probability that a training sample loses an encoder, in [0, 1).

    Raises:
        ValueError: for sizes below 1, or a dropout outside [0, 1).
    """

    def __init__(self, encoders: Mapping[str, Encoder], tokens: int, context_dim: int, dropout: float) -> None:
        check_dropout(dropout)
        super().__init__(encoders, tokens, context_dim)
        self.dropout = dropout

    def dropping(self) -> Mapping[str, float | int]:
        """See Conditioner.dropping."""
        return {"dropout": self.dropout, "encoders": len(self._encoders)}

    def drop(self, condition: Condition, seed: int, position_B: Tensor) -> Texts:
        """Leaves each encoder out by itself, with probability ``dropout``."""
        asked = texts(condition)
        share_BE = rng.uniform(seed, rng.Stream.CONDITION_DROPOUT, position_B, (len(self._encoders),))
        return _keep(asked, share_BE >= self.dropout)

    def keep(self, condition: Condition, names: Sequence[str]) -> Texts:
        """The texts through some of the encoders alone; the others are not asked, and need no weights.

        Args:
            condition: texts.
            names: of the encoders to keep; none asks for nothing.

        Raises:
            ValueError: for a name that no encoder has.
        """
        if unknown := [name for name in names if name not in self._encoders]:
            raise ValueError(f"no encoders {unknown}; there are {list(self._encoders)}")
        asked = texts(condition)
        kept_E = torch.tensor([name in names for name in self._encoders], device=self.place.device)
        silent = {
            name: _silence(encoder, len(asked.captions), self.place.device)
            for name, encoder in self._encoders.items()
            if name not in names
        }
        kept = _keep(asked, kept_E.expand(len(asked.captions), -1))
        return kept._replace(states={**asked.states, **silent})

    def nothing(self, like: Condition) -> Texts:
        """Empty texts, through no encoder."""
        return self.keep(Texts(("",) * len(texts(like).captions), {}), ())

    def asks_nothing(self, condition: Condition) -> Tensor:
        """True where every encoder is left out."""
        asked = texts(condition)
        if asked.kept_BE is None:
            return torch.zeros(len(asked.captions), dtype=torch.bool, device=self.place.device)
        return ~asked.kept_BE.any(dim=1)

    def kept(self, asked: Texts) -> dict[str, Tensor]:
        """Which samples keep each encoder, bool (B,); empty where all keep all.

        Raises:
            ValueError: where ``kept_BE`` is not of these encoders.
        """
        if asked.kept_BE is None:
            return {}
        expected, found = (len(asked.captions), len(self._encoders)), tuple(asked.kept_BE.shape)
        if found != expected:
            raise ValueError(f"kept_BE is {found}; {expected} are needed, a column each of {list(self._encoders)}")
        return dict(zip(self._encoders, asked.kept_BE.to(self.place.device).unbind(1), strict=True))


def _keep(asked: Texts, kept_BE: Tensor) -> Texts:
    """The texts without what is not kept, or was not before."""
    return asked._replace(kept_BE=kept_BE if asked.kept_BE is None else asked.kept_BE.to(kept_BE.device) & kept_BE)


def _silence(encoder: Encoder, count: int, device: torch.device) -> TextStates:
    """Zeros in place of states that are left out, without their memory."""
    zero = torch.zeros((), device=device)
    return TextStates(
        zero.expand(count, encoder.tokens, encoder.context_dim),
        zero.bool().expand(count, encoder.tokens) if encoder.masked else None,
        None if encoder.pooled_dim is None else zero.expand(count, encoder.pooled_dim),
    )
