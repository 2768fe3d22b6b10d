"""A text encoder of CLIP, real and tiny, as the repositories of CLIP and of Stable Diffusion lay one out."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from snapgen_pl.conditioning.clip_text import CLIPText

MERGES = ["a n", "an d</w>", "c a", "ca t</w>", "d o", "do g</w>", "p h", "ph o", "pho t", "phot o</w>", "o f</w>"]
WIDTH, POSITIONS = 16, 12


def save_tokenizer(folder: Path) -> None:
    """Letters, the words a photo of and cat dog, and CLIP's two marks, as vocab.json and merges.txt."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")


def text_config(folder: Path, **more: object) -> CLIPTextConfig:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    settings = {
        "vocab_size": len(vocabulary),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    return CLIPTextConfig(**settings | more)


def save_pipeline(folder: Path, seed: int = 0) -> None:
    """text_encoder/ and tokenizer/, as in Stable Diffusion."""
    save_tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    CLIPTextModel(text_config(folder / "tokenizer")).save_pretrained(folder / "text_encoder")


def save_whole_clip(folder: Path) -> None:
    """Text and vision in one file, as in CLIP's own repositories, the tokenizer as one file besides."""
    save_tokenizer(folder)
    config = CLIPConfig(
        text_config=text_config(folder).to_dict(),
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                       "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def clip_text(pipeline: Path) -> CLIPText:
    return CLIPText(str(pipeline), "text_encoder", "tokenizer")
