"""The text encoders of Stable Diffusion 3, real and tiny, as its repositories lay them out."""

import json
from pathlib import Path

import torch
from transformers import CLIPTextModelWithProjection

from snapgen_pl.conditioning.sd3_texts import SD3Texts
from tests.conditioning import tiny_clip, tiny_t5

WIDTH_G = 20
PROJECTIONS = (8, 12)
T5_TOKENS = 15


def save_clip_tokenizer(folder: Path, pad: str) -> None:
    tiny_clip.save_tokenizer(folder)
    options = {"model_max_length": tiny_clip.POSITIONS, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks | {"pad_token": pad}))


def save_sd3(folder: Path) -> None:
    for suffix, pad, width, projection in (
        ("", "<|endoftext|>", tiny_clip.WIDTH, PROJECTIONS[0]),
        ("_2", "!", WIDTH_G, PROJECTIONS[1]),
    ):
        save_clip_tokenizer(folder / f"tokenizer{suffix}", pad)
        config = tiny_clip.text_config(
            folder / f"tokenizer{suffix}",
            hidden_size=width,
            projection_dim=projection,
            num_hidden_layers=3,
            initializer_factor=10.0,
        )
        torch.manual_seed(len(suffix))
        CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{suffix}")
    tiny_t5.save_t5(folder / "text_encoder_3", folder / "tokenizer_3")


def sd3_texts(folder: Path, t5: bool = True) -> SD3Texts:
    return SD3Texts(str(folder), t5=t5, t5_tokens=T5_TOKENS, context_dim=tiny_t5.WIDTH, dtype="float32")
