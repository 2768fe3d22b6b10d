"""The networks that judge text-to-image, real and tiny, as the folders and files that others publish."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from snapgen_pl.metrics.image_reward import BLIPSize
from snapgen_pl.metrics.sample_metric import SampleMetric

CLASSES = ("cat", "mouse", "dog")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "[ENC]", "yes", "no", "is", "there", "a", "cat", "dog", "red",
         "the", "photo", "of", "?"]  # fmt: skip
REWARD_SIZE = BLIPSize(
    image_size=16,
    patch=8,
    image_width=12,
    image_layers=2,
    image_heads=3,
    vocabulary=len(WORDS),
    tokens=6,
    positions=8,
    text_width=8,
    text_layers=2,
    text_heads=2,
)


def save_detector(folder: Path) -> Path:
    """Mask2Former that is sure of what it sees: its classes' logits are large."""
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ).to_dict(),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=6,
        id2label=dict(enumerate(CLASSES)), label2id={name: label for label, name in enumerate(CLASSES)},
    )  # fmt: skip
    torch.manual_seed(0)
    network = Mask2FormerForUniversalSegmentation(config)
    network.class_predictor.weight.data *= 20
    network.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> Path:
    """BERT's tokenizer of a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def save_vqa(folder: Path) -> Path:
    """BLIP, taught to answer by yes where a question holds the word cat, and by no otherwise."""
    save_tokenizer(folder)
    text = {
        "vocab_size": len(WORDS), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
        "bos_token_id": WORDS.index("[DEC]"), "sep_token_id": WORDS.index("[SEP]"),
        "eos_token_id": WORDS.index("[SEP]"), "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    network = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    tokenizer = BertTokenizer.from_pretrained(folder)
    questions = ["is there a cat ?", "is the cat red ?", "is there a dog ?", "is the dog red ?"]
    ids = tokenizer(questions, return_tensors="pt")["input_ids"]
    answers = torch.tensor(
        [[WORDS.index(word) for word in ("[DEC]", said, "[SEP]")] for said in ("yes", "yes", "no", "no")]
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        loss = network(input_ids=ids, pixel_values=torch.randn(4, 3, 16, 16), labels=answers).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.save_pretrained(folder)
    return folder


def reward_tensors() -> dict[str, torch.Tensor]:
    """What ImageReward.pt holds, by its names (THUDM/ImageReward, BLIP's vit.py and med.py), in small."""
    size, shapes = REWARD_SIZE, dict[str, tuple[int, ...]]()
    image, text = size.image_width, size.text_width

    def linear(name: str, into: int, out: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    visual = "blip.visual_encoder"
    patches = (size.image_size // size.patch) ** 2
    shapes |= {f"{visual}.cls_token": (1, 1, image), f"{visual}.pos_embed": (1, 1 + patches, image)}
    shapes |= {f"{visual}.patch_embed.proj.weight": (image, 3, size.patch, size.patch)}
    shapes |= {f"{visual}.patch_embed.proj.bias": (image,)}
    norm(f"{visual}.norm", image)
    for layer in range(size.image_layers):
        block = f"{visual}.blocks.{layer}"
        norm(f"{block}.norm1", image)
        norm(f"{block}.norm2", image)
        linear(f"{block}.attn.qkv", image, 3 * image)
        linear(f"{block}.attn.proj", image, image)
        linear(f"{block}.mlp.fc1", image, 4 * image)
        linear(f"{block}.mlp.fc2", 4 * image, image)
    encoder = "blip.text_encoder"
    shapes |= {f"{encoder}.embeddings.word_embeddings.weight": (size.vocabulary, text)}
    shapes |= {f"{encoder}.embeddings.position_embeddings.weight": (size.positions, text)}
    norm(f"{encoder}.embeddings.LayerNorm", text)
    for layer in range(size.text_layers):
        block = f"{encoder}.encoder.layer.{layer}"
        for attention, source in (("attention", text), ("crossattention", image)):
            linear(f"{block}.{attention}.self.query", text, text)
            linear(f"{block}.{attention}.self.key", source, text)
            linear(f"{block}.{attention}.self.value", source, text)
            linear(f"{block}.{attention}.output.dense", text, text)
            norm(f"{block}.{attention}.output.LayerNorm", text)
        linear(f"{block}.intermediate.dense", text, 4 * text)
        linear(f"{block}.output.dense", 4 * text, text)
        norm(f"{block}.output.LayerNorm", text)
    for place, into, out in ((0, text, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)):
        linear(f"mlp.layers.{place}", into, out)
    linear("blip.vision_proj", image, 256)
    linear("blip.text_proj", text, 256)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return tensors | {f"{encoder}.embeddings.position_ids": torch.arange(size.positions)[None]}


def images(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)


def features(metric: SampleMetric, image_BCHW: torch.Tensor, asked: list[str]) -> torch.Tensor:
    """A metric's, checked: what is made of images one by one is what is made of them together."""
    (whole,) = metric.features(image_BCHW, asked).values()
    apart = [metric.features(image[None], [text]) for image, text in zip(image_BCHW, asked, strict=True)]
    torch.testing.assert_close(torch.cat([each for row in apart for each in row.values()]), whole)
    return whole
