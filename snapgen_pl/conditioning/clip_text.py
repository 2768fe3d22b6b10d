"""The text encoders of CLIP: CLIP-L, CLIP-G and their kin."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.precision import DType

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROJECTION = "projection_dim"


class CLIPText(TextEncoder):
    """CLIP's text encoder, padding unmasked, as it was trained.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021. CLIP-L is 768 wide,
    CLIP-G (OpenCLIP's ViT-bigG/14, as SDXL and SD3 carry it) 1280, its text padded with "!".

    Args:
        path: a folder, or a name on the Hugging Face hub.
        subfolder: where under ``path`` the encoder lies: "" in CLIP's own repositories, "text_encoder" in those of
            Stable Diffusion, and "text_encoder_2" for CLIP-G in those of SDXL and SD3.
        tokenizer_subfolder: where under ``path`` the tokenizer lies: "", "tokenizer" or "tokenizer_2".
        layer: "last" is the last hidden state after the final layer norm; "penultimate" the hidden state before the
            last layer, not normalised: SDXL's and SD3's choice.
        truncate: cuts longer texts to 77 tokens, the end mark kept; without it they are refused.
        pooled: gives CLIP's text embedding too: the last layer's state of the end mark, projected, not normalised.
        dtype: what the network computes in.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: if files are missing or are those of something else.
    """

    model_type = "clip_text_model"
    vocabulary = ("vocab.json", "merges.txt")
    masked = False

    def __init__(
        self,
        path: str = "openai/clip-vit-large-patch14",
        subfolder: str = "",
        tokenizer_subfolder: str = "",
        layer: Literal["last", "penultimate"] = "last",
        truncate: bool = False,
        pooled: bool = False,
        dtype: DType = "float32",
        revision: str | None = None,
    ) -> None:
        options = () if layer == "last" else (layer,)
        super().__init__(path, subfolder, tokenizer_subfolder, None, truncate, dtype, options, revision)
        self.layer = layer
        if pooled:
            if PROJECTION not in self._config:
                raise ValueError(f"{path} does not say its {PROJECTION}; pooled needs an encoder with a projection")
            self.pooled_dim = self._config[PROJECTION]

    def classes(self) -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """See TextEncoder.classes."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        return CLIPTokenizer, CLIPTextModel if self.pooled_dim is None else CLIPTextModelWithProjection

    def settings(self) -> Mapping[str, Any]:
        """The width of the projection, which a whole CLIP says beside its text encoder's configuration."""
        return {} if self.pooled_dim is None else {PROJECTION: self.pooled_dim}

    def run(self, network: "PreTrainedModel", ids_BS: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See TextEncoder.run."""
        penultimate = self.layer == "penultimate"
        output = network(input_ids=ids_BS, output_hidden_states=penultimate)
        tokens_BSD = output.hidden_states[-2] if penultimate else output.last_hidden_state
        return tokens_BSD, None if self.pooled_dim is None else output.text_embeds

    def lacks(self, folder: Path, missing: set[str]) -> str:
        """See TextEncoder.lacks."""
        if missing == {"text_projection.weight"}:
            return f"{folder} has weights without a projection; unset pooled, or give an encoder that has one"
        return super().lacks(folder, missing)
