"""The text encoder of T5."""

from typing import TYPE_CHECKING

from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.precision import DType

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class T5Text(TextEncoder):
    """T5's last hidden states, 4096 wide in T5-XXL, padding attended to in the network and after it, as SD3 does.

    Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020; SD3's is
    the encoder of version 1.1 XXL, 4.76 B parameters.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        subfolder: where under ``path`` the encoder lies: "text_encoder_3" in the repositories of SD3.
        tokenizer_subfolder: where under ``path`` its tokenizer.json lies: "tokenizer_3".
        tokens: tokens a text is padded to. T5 numbers no positions: any number will do; SD3's is 256.
        truncate: cuts longer texts, the end mark kept; without it they are refused.
        dtype: what the network computes in.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: if files are missing or are those of something else.
    """

    model_type = "t5"
    sizes = ("d_model",)
    masked = False

    def __init__(
        self,
        path: str = "stabilityai/stable-diffusion-3.5-large",
        subfolder: str = "text_encoder_3",
        tokenizer_subfolder: str = "tokenizer_3",
        tokens: int = 256,
        truncate: bool = False,
        dtype: DType = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(path, subfolder, tokenizer_subfolder, tokens, truncate, dtype, revision=revision)

    def classes(self) -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """See TextEncoder.classes."""
        from transformers import T5EncoderModel, T5Tokenizer

        return T5Tokenizer, T5EncoderModel
