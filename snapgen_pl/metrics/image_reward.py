"""ImageReward: how much people would like an image for its text, learned from their choices (Xu et al., 2023)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snapgen_pl.digest import tensors_digest
from snapgen_pl.metrics.judge_network import CLIP as PIXELS
from snapgen_pl.metrics.judge_network import judge_tokenizer, judging, padded, require_file, resized
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, RequestMetric, Score, mean_and_truncated, prepared
from snapgen_pl.released.weights import fill, read_weights

# Of rewards over the training images: what they are given in deviations of.
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_HEAD = (1024, 128, 64, 16, 1)
_HEAD_PLACES = (0, 2, 4, 6, 7)  # of the published head's linear layers; dropout lies between
# Of BLIP's other tasks, in the published file and in no reward.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")


class BLIPSize(NamedTuple):
    """The size of a BLIP; the published one by default.

    Attributes:
        image_size: in pixels.
        patch: likewise.
        image_width: of the image's tokens.
        image_layers: of its transformer.
        image_heads: of its attention.
        vocabulary: tokens that a text is of.
        tokens: that are read of a text, marks included.
        positions: that the text's transformer has room for.
        text_width: of the text's tokens.
        text_layers: of its transformer, each of which looks at the image.
        text_heads: of its attention.
    """

    image_size: int = 224
    patch: int = 16
    image_width: int = 1024
    image_layers: int = 24
    image_heads: int = 16
    vocabulary: int = 30_524
    tokens: int = 35
    positions: int = 512
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12


class RewardNetwork(nn.Module):
    """BLIP's image transformer, its text transformer that looks at the image, and a head on the first token's state.

    Frozen, always in eval mode, and in fp32 under any autocast.

    Args:
        weights: ImageReward.pt, read as tensors only.
        size: of the networks.

    Attributes:
        digest: SHA-256 over the weights.

    Raises:
        ValueError: if the file is missing, or another network's.
    """

    def __init__(self, weights: Path, size: BLIPSize = BLIPSize()) -> None:  # noqa: B008 (immutable)
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        image = BlipVisionConfig(
            image_size=size.image_size,
            patch_size=size.patch,
            hidden_size=size.image_width,
            intermediate_size=4 * size.image_width,
            num_hidden_layers=size.image_layers,
            num_attention_heads=size.image_heads,
            layer_norm_eps=1e-6,
        )
        text = BlipTextConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.text_width,
            encoder_hidden_size=size.image_width,
            intermediate_size=4 * size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.text_heads,
            max_position_embeddings=size.positions,
        )
        self.side = size.image_size
        # Not on the meta device: the text's positions are a buffer that no file brings.
        with torch.random.fork_rng(devices=[]):
            self.image: Any = BlipVisionModel(image)
            self.text: Any = BlipTextModel(text, add_pooling_layer=False)
            self.head = _head(size.text_width)
        tensors = read_weights(str(weights), "state_dict")
        used = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED)}
        names = {own: published_name(own) for own in self.state_dict()}
        fill(self, used, names, str(weights), "give ImageReward.pt of ImageReward-v1.0")
        self.digest = tensors_digest(self.state_dict())

    def train(self, mode: bool = True) -> "RewardNetwork":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, image_BCHW: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """The reward of each image (B,), in deviations from the mean.

        Args:
            image_BCHW: uint8 RGB; what is not square loses its ends.
            ids_BS: int64, the texts' tokens.
            mask_BS: 1 where there is text.
        """
        with judging(image_BCHW.device):
            states_BPD = self.image(PIXELS(resized(image_BCHW, self.side))).last_hidden_state
            seen_BP = torch.ones(states_BPD.shape[:2], dtype=torch.long, device=states_BPD.device)
            token_BSD = self.text(
                input_ids=ids_BS,
                attention_mask=mask_BS,
                encoder_hidden_states=states_BPD,
                encoder_attention_mask=seen_BP,
            ).last_hidden_state
            reward_B: Tensor = self.head(token_BSD[:, 0])[:, 0]
            return (reward_B - _MEAN) / _STD


class ImageReward(RequestMetric):
    """``image_reward``: the mean over images, and the deviation over them.

    The network is the published one; which prompts the published table is of is not known here.
    ``image_reward_truncated`` is the share of images whose text is longer than it reads, 35 tokens.

    Args:
        weights: ImageReward.pt of ImageReward-v1.0.
        tokenizer: the folder of BERT's tokenizer, or its name on the Hugging Face hub: bert-base-uncased's.
        size: of the networks; the published one by default.
    """

    def __init__(self, weights: Path, tokenizer: str, size: BLIPSize = BLIPSize()) -> None:  # noqa: B008 (immutable)
        self.weights, self.tokenizer, self.size = weights, tokenizer, size
        self._loaded: tuple[Any, RewardNetwork] | None = None

    @property
    def network(self) -> str:
        """See the class."""
        return "image_reward"

    def protocol(self) -> Facts:
        """Weights and how much is read of a text."""
        _, network = prepared(self._loaded, self.network)
        return {"weights": network.digest, "tokens": self.size.tokens, "mean": _MEAN, "std": _STD}

    def prepare(self, device: torch.device) -> None:
        """Loads the network; a second call only moves it.

        Raises:
            ValueError: if a file is missing or another network's.
        """
        if self._loaded is None:
            from transformers import BertTokenizer

            require_file(self.weights, "ImageReward.pt, which THUDM/ImageReward has on the Hugging Face hub")
            tokenizer = judge_tokenizer(self.tokenizer, BertTokenizer, ("vocab.txt",))
            self._loaded = tokenizer, RewardNetwork(self.weights, self.size)
        self._loaded[1].to(device)

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """Each image's reward, and whether its text was cut, (B, 2)."""
        tokenizer, network = prepared(self._loaded, self.network)
        device = next(network.parameters()).device
        read = padded(tokenizer, asked, self.size.tokens, device)
        reward_B = network(image_BCHW.to(device), read.ids_BS, read.mask_BS)
        return {self.network: torch.stack([reward_B, read.truncated_B.float()], dim=-1)}

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """See the class."""
        score, truncated = mean_and_truncated(features, self.network)
        return {"image_reward": score, "image_reward_truncated": truncated}


# Our name, transformers' with its part before it -> the published file's, of BLIP's own code.
_IMAGE_NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "encoder.layers.": "blocks.",
    ".self_attn.qkv.": ".attn.qkv.",
    ".self_attn.projection.": ".attn.proj.",
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
    "post_layernorm.": "norm.",
}


def published_name(own: str) -> str:
    """The name in ImageReward.pt of a weight of :class:`RewardNetwork`.

    The text's transformer keeps its names in transformers, and so do the image's two linear layers of a block.
    """
    part, _, name = own.partition(".")
    if part == "head":
        place, _, kind = name.partition(".")
        return f"mlp.layers.{_HEAD_PLACES[int(place)]}.{kind}"
    if part == "text":
        return f"blip.text_encoder.{name}"
    for ours, theirs in _IMAGE_NAMES.items():
        name = name.replace(ours, theirs)
    return f"blip.visual_encoder.{name}"


def _head(width: int) -> nn.Sequential:
    """Linear layers with nothing between them, as published."""
    widths = (width, *_HEAD)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in zip(widths[:-1], _HEAD, strict=True)))
