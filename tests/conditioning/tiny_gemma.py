"""Gemma 2, real and tiny, in several shards, with a tokenizer.json as its repositories lay one out."""

import json
from pathlib import Path

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from snapgen_pl.conditioning.gemma_text import GemmaText

WIDTH, TOKENS = 24, 10
MARKS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BYTES = [f"<0x{code:02X}>" for code in range(256)]
MERGES = [["c", "a"], ["ca", "t"], ["d", "o"], ["do", "g"], ["p", "h"], ["ph", "o"]]


def save_tokenizer(folder: Path) -> None:
    letters = [chr(code) for code in range(97, 123)]
    words = [*MARKS, *BYTES, "▁", *letters, *("".join(merge) for merge in MERGES)]
    begin = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": mark} | flags for index, mark in enumerate(MARKS)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text],
                           "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {word: index for index, word in enumerate(words)}, "merges": MERGES},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    options = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def save_gemma(folder: Path) -> None:
    save_tokenizer(folder)
    torch.manual_seed(3)
    config = Gemma2Config(vocab_size=len(MARKS) + len(BYTES) + 33, hidden_size=WIDTH, intermediate_size=32, head_dim=8,
                          num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
                          max_position_embeddings=64, sliding_window=8)  # fmt: skip
    network = Gemma2ForCausalLM(config)
    torch.nn.init.normal_(network.model.norm.weight)  # a fresh one's states have a scale of 1 as they are
    network.save_pretrained(folder, max_shard_size="20KB")


def gemma_text(folder: Path, truncate: bool = False) -> GemmaText:
    return GemmaText(str(folder), tokens=TOKENS, truncate=truncate)
