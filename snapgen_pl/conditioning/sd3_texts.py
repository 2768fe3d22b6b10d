"""Texts as Stable Diffusion 3 and 3.5 are told them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from snapgen_pl.conditioning.clip_text import CLIPText
from snapgen_pl.conditioning.condition import Condition, Texts, TextStates, texts
from snapgen_pl.conditioning.t5_text import T5Text
from snapgen_pl.conditioning.text_conditioner import TextConditioner, check_block, joined
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.precision import DType

CLIP_L, CLIP_G, T5 = "clip_l", "clip_g", "t5"


class SD3Texts(TextConditioner):
    """CLIP-L's and CLIP-G's penultimate states side by side, zero-padded to T5's width, then T5's; and no mask.

    The pooled vector is both CLIPs' text embeddings. This is what diffusers' StableDiffusion3Pipeline.encode_prompt
    gives. Longer texts are cut. There is nothing to learn; nothing asked for is the empty text, and training leaves
    nothing out.

    States go by the names clip_l, clip_g and t5: those stored for a student with the same encoders serve here too, if
    the student's give pooled vectors.

    Args:
        path: a pipeline's folder, or its name on the Hugging Face hub.
        t5: whether T5 is asked; without it, as diffusers allows, its tokens are zeros.
        t5_tokens: tokens of T5's; diffusers' default is 256.
        context_dim: width of a token: T5's, 4096.
        dtype: what the encoders compute in.
        revision: branch, tag or commit on the hub.

    Attributes:
        empty: the empty text's states by the encoder's name, a row each. Who has them may put them here; those that are
            needed and missing are made, once.

    Raises:
        ValueError: if files are missing or are those of something else, or T5 has another width.
    """

    def __init__(
        self,
        path: str = "stabilityai/stable-diffusion-3.5-large",
        t5: bool = True,
        t5_tokens: int = 256,
        context_dim: int = 4096,
        dtype: DType = "bfloat16",
        revision: str | None = None,
    ) -> None:
        encoders: dict[str, TextEncoder] = {
            CLIP_L: _clip(path, "text_encoder", "tokenizer", dtype, revision),
            CLIP_G: _clip(path, "text_encoder_2", "tokenizer_2", dtype, revision),
        }
        if t5:
            encoders[T5] = T5Text(path, "text_encoder_3", "tokenizer_3", t5_tokens, True, dtype, revision)
            if encoders[T5].context_dim != context_dim:
                raise ValueError(f"T5 is {encoders[T5].context_dim} wide, context_dim is {context_dim}; set it to T5's")
        check_block({name: encoders[name] for name in (CLIP_L, CLIP_G)}, context_dim)
        super().__init__(encoders, encoders[CLIP_L].tokens + t5_tokens, context_dim)
        self.t5_tokens = t5_tokens
        self.empty: dict[str, TextStates] = {}

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward.

        Raises:
            ValueError: where stored states are not of these encoders, or the texts were left out in part.
        """
        asked = texts(condition)
        if asked.kept_BE is not None:
            raise ValueError("SD3 was trained on whole texts; give it those from before another conditioner's drop()")
        states = self.states(asked)
        if T5 in states:
            t5_BSD = states[T5].tokens_BSD
        else:
            t5_BSD = self.place.new_zeros(len(asked.captions), self.t5_tokens, self.context_dim)
        clips = states[CLIP_L], states[CLIP_G]
        context_BSD = joined([[clip.tokens_BSD for clip in clips], [t5_BSD]], self.context_dim)
        pooled = [clip.pooled_BP for clip in clips if clip.pooled_BP is not None]  # both: states() saw to it
        return Conditioning(context_BSD, None, torch.cat(pooled, dim=-1))

    def dropping(self) -> Mapping[str, float | int]:
        """See Conditioner.dropping."""
        return {}

    def drop(self, condition: Condition, seed: int, position_B: Tensor) -> Condition:
        """Takes nothing away."""
        return condition

    def nothing(self, like: Condition) -> Texts:
        """Empty texts, with their states."""
        count = len(texts(like).captions)
        for name, encoder in self._encoders.items():
            if name not in self.empty:
                self.empty[name] = encoder.to(self.place.device).encode_once([""])
        return Texts(("",) * count, {name: _repeated(self.empty[name], count) for name in self._encoders})

    def asks_nothing(self, condition: Condition) -> Tensor:
        """True for empty texts."""
        return torch.tensor([not caption for caption in texts(condition).captions], device=self.place.device)


def _clip(path: str, subfolder: str, tokenizer_subfolder: str, dtype: DType, revision: str | None) -> CLIPText:
    return CLIPText(
        path, subfolder, tokenizer_subfolder, "penultimate", truncate=True, pooled=True, dtype=dtype, revision=revision
    )


def _repeated(states: TextStates, count: int) -> TextStates:
    pooled_BP = None if states.pooled_BP is None else states.pooled_BP.expand(count, -1)
    return TextStates(states.tokens_BSD.expand(count, -1, -1), None, pooled_BP)
