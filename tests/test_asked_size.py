"""Configurations that ask for more than their weights fill are refused before memory is taken."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from snapgen_pl.asked_size import check_layers, check_size, check_size_by_files
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.conditioning.gemma_text import GemmaText
from snapgen_pl.pretrained_network import read_network
from snapgen_pl.tables.parts import latents, sd3_teacher, text_encoder
from snapgen_pl.teachers.sd3 import SD3Teacher
from tests.conditioning import tiny_clip, tiny_gemma
from tests.teachers import tiny
from tests.tiny_kl import kl

FILE = Path("folder/config.json")
ENDLESS = 10**6  # enough to wait for, and little enough to bear where a test fails


@pytest.fixture
def nothing_made() -> Iterator[None]:
    """While a test runs, no module may get a parameter."""

    def refuse(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        raise AssertionError(f"{name} of a {type(module).__name__} was made")

    hook = register_module_parameter_registration_hook(refuse)
    yield
    hook.remove()


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
    _change(tmp_path / "config.json", layers_per_block=1000)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        KL(str(tmp_path)).ready(tmp_path, ())


def test_a_text_encoder_of_transformers(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    tiny_clip.save_pipeline(tmp_path)
    _change(tmp_path / "text_encoder" / "config.json", num_hidden_layers=1000)
    with pytest.raises(ValueError, match=r"text_encoder does not fit its config\.json"):
        read_network(CLIPTextModel, tmp_path / "text_encoder", torch.float32, {})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_hidden_layers": 1001}, "num_hidden_layers: 1,001"),
        ({"text_config": {"n_layer": 10**30}}, "n_layer: 1,000,000,"),
        ({"transformer_layers_per_block": [1, [2, 10**9]]}, "transformer_layers_per_block: 1,000,000,000"),
        ({"stages": [{"channels": 32, "blocks": 1}, {"blocks": 2e9}]}, "blocks: 2,000,000,000"),
        ({"init_args": {"middle_layers": float("inf"), "depth": 3}}, "middle_layers: inf"),
        ({"num_local_experts": 5000}, "num_local_experts: 5,000"),
    ],
)
def test_layers_without_end_are_refused_by_name(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^folder/config\.json says {said}.* has more than 1,000; correct it, or get"
    ):
        check_layers(asked, FILE)


def test_what_is_no_number_of_layers_may_be_large() -> None:
    check_layers(
        {
            "num_layers": 1000,
            "block_out_channels": [1280, 2560],
            "layer_norm_eps": 1e-6,
            "layers": None,
            "use_layers": True,
            "blocks": [["clip_l", "clip_g"]],
            "vocab_size": 256_000,
        },
        FILE,
    )


def test_however_deep_a_file_nests_them(tmp_path: Path) -> None:
    nested: object = {"depth": ENDLESS}
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(ValueError, match="says depth: 1,000,000"):
        check_layers(nested, FILE)


def _sd3(folder: Path) -> Callable[[], object]:
    tiny.pipeline(folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    _change(folder / "transformer" / "config.json", num_layers=ENDLESS)
    conditioner = tiny.conditioner()
    return lambda: SD3Teacher(conditioner, str(folder))


def _sd3_counted(folder: Path) -> Callable[[], object]:
    _sd3(folder)
    return lambda: sd3_teacher({"path": str(folder), "subfolder": "transformer"})


def _kl_counted(folder: Path) -> Callable[[], object]:
    kl().save_pretrained(folder)
    _change(folder / "config.json", layers_per_block=ENDLESS)
    return lambda: latents(_declared("autoencoders.kl.KL", path=str(folder)))


def _kl(folder: Path) -> Callable[[], object]:
    _kl_counted(folder)
    return lambda: KL(str(folder)).ready(folder, ())


def _clip_counted(folder: Path) -> Callable[[], object]:
    tiny_clip.save_pipeline(folder)
    _change(folder / "text_encoder" / "config.json", num_hidden_layers=ENDLESS)
    places = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    return lambda: text_encoder(_declared("conditioning.clip_text.CLIPText", path=str(folder), **places))


def _gemma(folder: Path) -> Callable[[], object]:
    """Whose configuration lists its layers before any is made."""
    tiny_gemma.save_gemma(folder)
    _change(folder / "config.json", num_hidden_layers=ENDLESS)
    return lambda: GemmaText(str(folder))


@pytest.mark.parametrize("saved", [_sd3, _sd3_counted, _kl_counted, _kl, _clip_counted, _gemma])
def test_readers_refuse_them_before_a_layer_is_made(
    saved: Callable[[Path], Callable[[], object]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    read = saved(tmp_path)
    request.getfixturevalue("nothing_made")
    with pytest.raises(ValueError, match=r"config\.json says \w+: 1,000,000, and no network"):
        read()


def _declared(name: str, **arguments: str) -> dict[str, Any]:
    return {"class_path": f"snapgen_pl.{name}", "init_args": arguments}


def _change(file: Path, **entries: int) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
