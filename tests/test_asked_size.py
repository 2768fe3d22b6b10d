"""Configurations that ask for more than their weights fill are refused before memory is taken."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from snapgen_pl.asked_size import check_size, check_size_by_files
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.pretrained_network import read_network
from tests.conditioning import tiny_clip
from tests.tiny_kl import kl

FILE = Path("folder/config.json")


def layers(count: int, width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


def test_as_many_numbers_as_bytes_are_borne_and_not_one_more() -> None:
    check_size(lambda: layers(2, 3), 24, FILE)
    with pytest.raises(ValueError, match=r"^folder does not fit its config\.json: .* of more than 23 numbers, and the"):
        check_size(lambda: layers(2, 3), 23, FILE)
    check_size(lambda: nn.BatchNorm1d(2), 9, FILE)  # with its mean, variance and count
    with pytest.raises(ValueError, match="more than 8 numbers"):
        check_size(lambda: nn.BatchNorm1d(2), 8, FILE)


@pytest.mark.parametrize(("count", "width"), [(1, 10**6), (10**12, 1), (1, 10**10), (1, 10**30)])
def test_what_no_machine_holds_is_given_up_at_once(count: int, width: int) -> None:
    with pytest.raises(ValueError, match="does not fit its"):
        check_size(lambda: layers(count, width), 10_000, FILE)


def test_other_errors_and_networks_are_left_alone() -> None:
    """Also those that are made after one was refused."""
    check_size(lambda: nn.Linear("wide", 3), 0, FILE)  # type: ignore[arg-type]
    before = torch.random.get_rng_state()
    check_size(lambda: layers(1, 2), 6, FILE)
    with pytest.raises(ValueError, match="does not fit its"):
        check_size(lambda: layers(1, 2), 5, FILE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert layers(3, 3)[0].weight.device.type == "cpu"


def test_where_there_are_no_weights_their_reader_says_so(tmp_path: Path) -> None:
    check_size_by_files(lambda: layers(2, 3), tmp_path / "config.json")


def test_an_autoencoder_of_diffusers(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    _change(tmp_path / "config.json", layers_per_block=10**9)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        KL(str(tmp_path)).ready(tmp_path, ())


def test_a_text_encoder_of_transformers(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    tiny_clip.save_pipeline(tmp_path)
    _change(tmp_path / "text_encoder" / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ValueError, match=r"text_encoder does not fit its config\.json"):
        read_network(CLIPTextModel, tmp_path / "text_encoder", torch.float32, {})


def _change(file: Path, **entries: int) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
