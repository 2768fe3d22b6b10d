"""The text encoder of CLIP."""

from typing import TYPE_CHECKING

from snapgen_pl.conditioning.text_encoder import TextEncoder

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CLIPText(TextEncoder):
    """CLIP's text encoder: the last hidden state after its final layer norm, padding unmasked, as it was trained.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        subfolder: where under ``path`` the encoder lies: "" in CLIP's own repositories, "text_encoder" in those of
            Stable Diffusion.
        tokenizer_subfolder: where under ``path`` the tokenizer lies: "", or "tokenizer".

    Raises:
        ValueError: if files are missing or are those of something else.
    """

    model_type = "clip_text_model"
    vocabulary = ("vocab.json", "merges.txt")
    masked = False

    def __init__(
        self, path: str = "openai/clip-vit-large-patch14", subfolder: str = "", tokenizer_subfolder: str = ""
    ) -> None:
        super().__init__(path, subfolder, tokenizer_subfolder, tokens=None)

    @staticmethod
    def classes() -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """See TextEncoder.classes."""
        from transformers import CLIPTextModel, CLIPTokenizer

        return CLIPTokenizer, CLIPTextModel
