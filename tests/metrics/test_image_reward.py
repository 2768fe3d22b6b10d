from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer

from snapgen_pl.metrics.feature_store import MemoryFeatures
from snapgen_pl.metrics.image_reward import ImageReward, RewardNetwork
from snapgen_pl.metrics.judge_network import CLIP
from tests.metrics.tiny_judges import REWARD_SIZE, features, images, reward_tensors, save_tokenizer

CPU = torch.device("cpu")
ASKED = ["a red cat", "a photo of the dog", "the cat"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(reward_tensors(), tmp_path / "ImageReward.pt")
    return tmp_path / "ImageReward.pt"


def metric(weights: Path) -> ImageReward:
    metric = ImageReward(weights, str(save_tokenizer(weights.parent)), REWARD_SIZE)
    metric.prepare(CPU)
    return metric


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask_BS: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d)) v, head by head."""
    parts = []
    for q, k, v in zip(*(each.chunk(heads, dim=-1) for each in (query, key, value)), strict=True):
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if mask_BS is not None:
            logits = logits.masked_fill(~mask_BS[:, None].bool(), -torch.inf)
        parts.append(logits.softmax(dim=-1) @ v)
    return torch.cat(parts, dim=-1)


def published(tensors: dict[str, Tensor], image_BCHW: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """ImageReward by its papers: a pre-norm ViT, a post-norm BERT whose layers look at the image, linear layers."""
    size = REWARD_SIZE

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: Tensor, epsilon: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    visual = "blip.visual_encoder"
    weight, bias = (tensors[f"{visual}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = F.conv2d(CLIP(image_BCHW.float()), weight, bias, stride=size.patch).flatten(2).transpose(1, 2)
    x = torch.cat((tensors[f"{visual}.cls_token"].expand(len(patches), -1, -1), patches), dim=1)
    x = x + tensors[f"{visual}.pos_embed"]
    for layer in range(size.image_layers):
        block = f"{visual}.blocks.{layer}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(f"{block}.attn.proj", attention(*qkv, size.image_heads))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    seen = norm(f"{visual}.norm", x, 1e-6)

    encoder = "blip.text_encoder"
    words = tensors[f"{encoder}.embeddings.word_embeddings.weight"][ids_BS]
    places = tensors[f"{encoder}.embeddings.position_embeddings.weight"][: ids_BS.shape[1]]
    y = norm(f"{encoder}.embeddings.LayerNorm", words + places, 1e-12)
    for layer in range(size.text_layers):
        block = f"{encoder}.encoder.layer.{layer}"
        for name, source, mask in (("attention", None, mask_BS), ("crossattention", seen, None)):
            of = y if source is None else source
            q, k, v = (linear(f"{block}.{name}.self.{part}", each) for part, each in
                       (("query", y), ("key", of), ("value", of)))  # fmt: skip
            mixed = linear(f"{block}.{name}.output.dense", attention(q, k, v, size.text_heads, mask))
            y = norm(f"{block}.{name}.output.LayerNorm", mixed + y, 1e-12)
        wide = linear(f"{block}.output.dense", F.gelu(linear(f"{block}.intermediate.dense", y)))
        y = norm(f"{block}.output.LayerNorm", wide + y, 1e-12)
    reward = y[:, 0]
    for place in (0, 2, 4, 6, 7):
        reward = linear(f"mlp.layers.{place}", reward)
    return (reward[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_the_published_file_gives_what_its_papers_compute(weights: Path) -> None:
    image_BCHW = images(3, side=16)
    found = features(metric(weights), image_BCHW, ASKED)
    tokenizer = BertTokenizer.from_pretrained(weights.parent)
    read = tokenizer(ASKED, padding="max_length", truncation=True, max_length=REWARD_SIZE.tokens, return_tensors="pt")
    expected = published(reward_tensors(), image_BCHW, read["input_ids"], read["attention_mask"])
    assert expected.std() > 0.01 * expected.abs().mean(), "rewards that do not depend on the image would prove nothing"
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert found[:, 1].tolist() == [0, 1, 0]
    values = metric(weights).measure(MemoryFeatures(3, [{"image_reward": found}]))
    assert values["image_reward"].value == pytest.approx(float(expected.double().mean()), rel=1e-4)
    assert values["image_reward_truncated"].value == pytest.approx(1 / 3)


def test_another_networks_file_is_refused(weights: Path) -> None:
    tokenizer = str(save_tokenizer(weights.parent))
    with pytest.raises(ValueError, match=r"there is no file nowhere\.pt; give ImageReward\.pt"):
        ImageReward(Path("nowhere.pt"), tokenizer).prepare(CPU)
    (weights.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="no tokenizer in"):
        ImageReward(weights, str(weights.parent / "empty"), REWARD_SIZE).prepare(CPU)
    with pytest.raises(ValueError, match="misshapen: blip"):
        RewardNetwork(weights, REWARD_SIZE._replace(image_width=24))
    tensors = reward_tensors()
    del tensors["blip.visual_encoder.norm.bias"]
    torch.save(tensors | {"blip.other": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"missing: blip\.visual_encoder\.norm\.bias; foreign: blip\.other"):
        RewardNetwork(weights, REWARD_SIZE)
