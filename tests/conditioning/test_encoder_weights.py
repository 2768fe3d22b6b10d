import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from snapgen_pl.conditioning.encoder_weights import INDEX, weight_files
from tests.conditioning.tiny_clip import clip_text
from tests.conditioning.tiny_gemma import gemma_text, save_gemma

TEXTS = ["a cat", "a dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_gemma(tmp_path / "gemma")
    return tmp_path / "gemma"


def test_all_shards_are_read_and_the_fingerprint_covers_them(folder: Path) -> None:
    files = weight_files(str(folder), "")
    assert len(files) > 2
    assert files == sorted(folder.glob("model-*.safetensors"))
    before, states = gemma_text(folder).fingerprint(), gemma_text(folder).encode(TEXTS)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert gemma_text(folder).fingerprint() != before
        file.write_bytes(content)
    assert gemma_text(folder).fingerprint() == before
    whole = folder.parent / "whole"
    shutil.copytree(folder, whole, ignore=shutil.ignore_patterns("model*"))
    encoder = gemma_text(folder)
    encoder.encode(TEXTS)
    assert encoder._loaded is not None
    encoder._loaded[1].save_pretrained(whole)
    assert weight_files(str(whole), "") == [whole / "model.safetensors"]
    assert torch.equal(gemma_text(whole).encode(TEXTS).tokens_BSD, states.tokens_BSD)


def test_a_missing_shard_or_a_broken_index_is_named(folder: Path) -> None:
    files = weight_files(str(folder), "")
    files[1].unlink()
    encoder = gemma_text(folder)
    with pytest.raises(ValueError, match=rf"lacks 1 of the {len(files)} files that .*, such as {files[1].name}; down"):
        encoder.encode(TEXTS)
    for broken in ("{", json.dumps({"weights": {}}), json.dumps({"weight_map": []})):
        (folder / INDEX).write_text(broken)
        with pytest.raises(ValueError, match=r"index.json is no index of weights \(.*\); download it again"):
            encoder.fingerprint()
    (folder / INDEX).unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors in .*; download it there \(pickled"):
        encoder.encode(TEXTS)


def test_an_encoder_goes_where_it_is_sent_and_is_never_copied(pipeline: Path) -> None:
    encoder = clip_text(pipeline)
    assert encoder.to(torch.device("cpu")) is encoder
    with torch.inference_mode():
        states = encoder.encode(TEXTS)
    assert not states.tokens_BSD.is_inference()
    assert encoder._loaded is not None
    network = encoder._loaded[1]
    assert not any(parameter.is_inference() or parameter.requires_grad for parameter in network.parameters())
    assert not network.training
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(TEXTS).tokens_BSD, states.tokens_BSD)
    assert copy.deepcopy(encoder) is encoder
    with torch.inference_mode():
        encoder.to(torch.device("meta"))
    assert {(parameter.device.type, parameter.is_inference()) for parameter in network.parameters()} == {
        ("meta", False)
    }


def test_states_out_of_the_range_of_half_precision_are_refused(folder: Path) -> None:
    encoder = gemma_text(folder)
    encoder.dtype = "float16"
    encoder.encode(TEXTS)
    assert encoder._loaded is not None
    encoder._loaded[1].norm.weight.fill_(6e4)
    with pytest.raises(ValueError, match="GemmaText leaves the range of float16; set its dtype to bfloat16"):
        encoder.encode(TEXTS)
