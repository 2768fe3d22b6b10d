"""Gemma 2 as a text encoder."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.precision import DType

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class GemmaText(TextEncoder):
    """The last hidden states of Gemma 2, each token scaled to a root mean square of 1; padding is masked.

    Gemma Team, Gemma 2: Improving Open Language Models at a Practical Size, 2024. The 2B model's are 2304 wide. A
    language model's states vary far more than CLIP's or T5's (Xie et al., SANA, 2024, on which training was unstable);
    they are normalised over the width, without gain (decided here). The mark of the beginning, which every text has,
    is kept.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        subfolder: where under ``path`` the network lies.
        tokenizer_subfolder: where under ``path`` its tokenizer.json lies.
        tokens: tokens a text is padded to.
        truncate: cuts longer texts; without it they are refused.
        dtype: what the network computes in.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: if files are missing or are those of something else, or there are no so many positions.
    """

    model_type = "gemma2"
    masked = True

    def __init__(
        self,
        path: str = "google/gemma-2-2b",
        subfolder: str = "",
        tokenizer_subfolder: str = "",
        tokens: int = 128,
        truncate: bool = False,
        dtype: DType = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(path, subfolder, tokenizer_subfolder, tokens, truncate, dtype, revision=revision)

    def classes(self) -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """See TextEncoder.classes."""
        from transformers import Gemma2Model, GemmaTokenizer

        return GemmaTokenizer, Gemma2Model

    def run(self, network: "PreTrainedModel", ids_BS: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See TextEncoder.run."""
        # Nothing is generated: keys and values of 26 layers are not to be kept.
        states_BSD = network(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state.float()
        return F.rms_norm(states_BSD, states_BSD.shape[-1:]), None
