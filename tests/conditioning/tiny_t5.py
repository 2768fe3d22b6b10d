"""T5's encoder, real and tiny, with a unigram tokenizer of its kind."""

from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 40


def save_tokenizer(folder: Path) -> None:
    """Letters and the words a photo of and cat dog, as tokenizer.json."""
    words = ["▁a", "▁photo", "▁of", "▁and", "▁cat", "▁dog"]
    letters = [chr(code) for code in range(97, 123)]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*marks, *((letter, -8.0) for letter in letters), *((word, -3.0) for word in words)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)


def save_t5(folder: Path, tokenizer: Path) -> None:
    save_tokenizer(tokenizer)
    torch.manual_seed(2)
    config = T5Config(vocab_size=40, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                      feed_forward_proj="gated-gelu")  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder)
