"""Memory by parts, held against hand counts, against torch, and against what a GPU was measured to hold."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.networks import SUBJECTS
from snapgen_pl.__main__ import main
from snapgen_pl.conditioning.sd3_texts import SD3Texts
from snapgen_pl.conditioning.t5_text import T5Text
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.merged_config import merged
from snapgen_pl.models.activations import saved
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.tables.memory import GIB, Part, memory, memory_rows, parts, recipe
from snapgen_pl.tables.parts import conditioner, text_encoder
from tests.teachers import tiny

STAGE = {"channels": 32, "down": [{"layers": 1}], "up": [{"layers": 0}, {"layers": 1}]}
NETWORK = {"stages": [STAGE, STAGE], "middle_layers": 1, "in_channels": 4, "context_dim": 16, "head_dim": 16}
TOKENS = {"num_classes": 2, "tokens": 3, "context_dim": 16}
NO_CLASS = 1


def declared(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"snapgen_pl.{name}", "init_args": arguments}


PRETRAIN: dict[str, Any] = {
    "model": declared(
        "modules.pretrain.Pretrain",
        image_size=32,
        denoiser=declared("models.unet.UNet", **NETWORK),
        conditioner=declared("conditioning.class_tokens.ClassTokens", **TOKENS),
        autoencoder=declared("autoencoders.patch_pca.PatchPCA", patch=4, channels=4),
    ),
    "trainer": {"precision": "bf16-mixed"},
}


def written(folder: Path, content: dict[str, Any], name: str = "run.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / name


def sizes(file: Path, **options: Any) -> dict[str, float]:
    return {part.name: part.size for part in parts(recipe([file], **options))}


def test_parts_of_pretraining_are_the_numbers_counted_by_hand(tmp_path: Path) -> None:
    found = sizes(written(tmp_path, PRETRAIN))
    weights = 4 * (_unet_weights() + (2 + NO_CLASS) * 3 * 16)
    assert found["trained: weights"] == found["trained: gradients"] == found["average"] == weights
    assert found["trained: optimizer state"] == 2 * weights
    pixels = 3 * 4**2
    assert found["autoencoder"] == 4 * (pixels + 4 * pixels + 4)
    assert set(found) == {
        "trained: weights", "trained: gradients", "trained: optimizer state", "average", "autoencoder",
        "trained: autocast's bf16 copies", "activations: others", "activations, an image: denoiser",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "precision", "states", "each"),
    [("AdamW", "bf16-true", 2, 2), ("SGD", "32-true", 0, 4), ("Adagrad", "bf16-mixed", 1, 4)],
)
def test_optimizer_and_precision_are_the_configurations(
    tmp_path: Path, optimizer: str, precision: str, states: int, each: int
) -> None:
    content = copy.deepcopy(PRETRAIN)
    content["model"]["init_args"]["optimizer"] = {"class_path": f"torch.optim.{optimizer}", "init_args": {"lr": "1e-4"}}
    content["trainer"]["precision"] = precision
    found = sizes(written(tmp_path, content))
    assert found["trained: weights"] == each * (_unet_weights() + 3 * 3 * 16)
    assert found["trained: optimizer state"] == states * found["trained: weights"]
    assert ("trained: autocast's bf16 copies" in found) == (precision == "bf16-mixed")


def test_activations_grow_by_the_image(tmp_path: Path) -> None:
    """What four images hold is what the sum says of them, and the network itself keeps."""
    content = merged(PRETRAIN, {"trainer": {"precision": "32-true"}})
    file = written(tmp_path, content)
    found = parts(recipe([file]))
    student = recipe([file]).network
    with torch.device("meta"):
        x_BCHW, t_B, told = torch.empty(4, 4, 8, 8), torch.empty(4), Conditioning(torch.empty(4, 3, 16))
    kept = saved(lambda: student(x_BCHW, t_B, told), student.parameters()).activations
    *_, without, at_four, _ = memory_rows(found, memory=1, batch=4)
    others = next(part.size for part in found if part.name == "activations: others")
    assert at_four.gib_per_gpu - without.gib_per_gpu == pytest.approx((kept - others) / GIB, abs=2e-4)
    image = next(part.size for part in found if part.image)
    assert 4 * image + others == kept


def test_recomputing_trades_saved_activations_for_those_of_a_block(tmp_path: Path) -> None:
    network = {"model": {"init_args": {"denoiser": {"init_args": {"activation_checkpointing": True}}}}}
    plain, spare = sizes(written(tmp_path, PRETRAIN)), sizes(written(tmp_path, merged(PRETRAIN, network)))
    name, block = "activations, an image: denoiser", "activations, an image: recomputed block"
    assert spare[name] < spare[name] + spare[block] < plain[name]
    assert spare["trained: autocast's bf16 copies"] == plain["trained: autocast's bf16 copies"]


def test_sharding_divides_what_is_trained_and_replication_adds_buckets(tmp_path: Path) -> None:
    file = written(tmp_path, PRETRAIN)
    one, eight = sizes(file), sizes(file, gpus=8, strategy="fsdp2")
    for name in ("trained: weights", "trained: gradients", "trained: optimizer state", "average"):
        assert eight[name] == one[name] / 8
    assert eight["activations, an image: denoiser"] == one["activations, an image: denoiser"]
    assert eight["trained: units gathered"] > 0
    replicated = sizes(file, gpus=8)
    assert replicated == {**one, "trained: DDP's buckets": one["trained: gradients"]}
    sharded = merged(PRETRAIN, {"trainer": {"strategy": "snapgen_pl.fsdp.FSDP2"}})
    assert sizes(written(tmp_path, sharded), gpus=8) == eight


def test_the_largest_micro_batch_fits_and_no_larger_one() -> None:
    found = [Part("weights", 2 * GIB, ""), Part("images", 3 * GIB, "", image=True)]
    for memory_gib, fits, total in ((80, 26, 80), (79.9, 25, 77), (4, 0, 2)):
        last = memory_rows(found, memory_gib)[-1]
        assert (last.images, last.gib_per_gpu) == (fits, total)
    assert last.part.endswith("none fits")


def test_step_distillation_has_a_discriminator_and_a_teacher_that_is_looked_through(tmp_path: Path) -> None:
    pipeline = tiny.pipeline(tmp_path)
    heads = {"inputs": [{"feature": "block.2", "channels": 16}], "summary_dim": 12, "width": 8}
    asked = declared("conditioning.class_tokens.ClassTokens", num_classes=2, tokens=5, context_dim=12)
    teacher = declared("teachers.sd3.SD3Teacher", path=str(pipeline), conditioner=asked, dtype="float32")
    distill = merged(PRETRAIN, {"model": {"init_args": {"teacher": teacher}}})
    distill["model"]["class_path"] = "snapgen_pl.modules.distill.Distill"
    step = merged(
        distill, {"model": {"init_args": {"discriminator": declared("models.discriminator.Discriminator", **heads)}}}
    )
    step["model"]["class_path"] = "snapgen_pl.modules.step_distill.StepDistill"
    learned, judged = sizes(written(tmp_path, distill)), sizes(written(tmp_path, step))
    with torch.device("meta"):
        discriminator = Discriminator([HeadInput("block.2", 16)], summary_dim=12, width=8)
    weights = sum(weight.numel() for weight in discriminator.parameters())
    assert judged["discriminator, its gradients and optimizer state"] == 4 * 4 * weights
    mmdit = tiny.mmdit()
    (name,) = (name for name in judged if name.startswith("teacher"))
    held = [*mmdit.parameters(), *mmdit.buffers()]
    assert judged[name] == learned[name] == 4 * sum(tensor.numel() for tensor in held)
    assert judged["activations, an image: teacher"] > learned["activations, an image: teacher"] > 0
    step["model"]["init_args"]["discriminator"]["init_args"]["inputs"][0]["feature"] = "block.1"
    early = sizes(written(tmp_path, step))
    assert early["activations, an image: teacher"] < judged["activations, an image: teacher"]
    assert judged["activations, an image: denoiser"] == learned["activations, an image: denoiser"]
    offloaded = merged(distill, {"model": {"init_args": {"teacher": {"init_args": {"placement": "offloaded"}}}}})
    assert sizes(written(tmp_path, offloaded))[name] == 4 * sum(buffer.numel() for buffer in mmdit.buffers())


def test_encoders_are_held_where_their_states_are_not_stored() -> None:
    folder = experiments_dir() / "t2i"
    stored = recipe([folder / "kd_output.yaml"])
    names = [part.name for part in parts(stored._replace(teacher=None, stored=["clip_l", "gemma"]))]
    assert [name for name in names if name.startswith("text encoder")] == ["text encoder clip_g (published size)"]
    assert stored.asked.tokens == 1 + 77 + 128
    assert stored.stored == ["clip_l", "clip_g", "gemma"]


def test_what_a_configuration_leaves_out_is_as_the_class_has_it() -> None:
    own = inspect.signature(T5Text).parameters
    encoder = text_encoder(declared("conditioning.t5_text.T5Text"))
    assert (encoder.tokens, encoder.published) == (own["tokens"].default, True)
    both = conditioner(declared("conditioning.sd3_texts.SD3Texts"), context_dim=4096)
    assert both.tokens == 77 + inspect.signature(SD3Texts).parameters["t5_tokens"].default
    assert {each.bytes_each for each in both.encoders.values()} == {2}


def test_it_says_what_a_gpu_was_measured_to_hold(tmp_path: Path) -> None:
    """snapgen_t2i of benchmarks.training, without an average, whose gradients come as its activations go.

    Its teacher computed all of its blocks then, as it does now where a head reads the last.
    """
    measured = json.loads((experiments_dir() / "results" / "step_distill_cuda.json").read_text())["turns"]["generator"]
    distill = [experiments_dir() / "t2i" / "kd_output.yaml", experiments_dir() / "step" / "four_step.yaml"]
    states = dict.fromkeys(("clip_l", "clip_g", "gemma", "t5"), "stored")
    delta = {
        "model": {
            "init_args": {
                "conditioner": declared(
                    "conditioning.class_tokens.ClassTokens", num_classes=1, tokens=155, context_dim=2304
                ),
                "autoencoder": declared("autoencoders.patch_pca.PatchPCA", patch=8, channels=16),
                "teacher": {"init_args": {"placement": "replicated"}},
                "discriminator": {
                    "init_args": {"inputs": [{"feature": f"block.{i}", "channels": 2432} for i in (7, 15, 23, 37)]}
                },
            }
        },
        "data": {"init_args": {"text_states": states}},
        "ema": {"modules": []},
    }
    files = [*map(str, distill), str(written(tmp_path, delta))]
    rows = json.loads(memory(files, batch=measured["batch"], format="json"))
    total = next(row for row in rows if row["part"] == "all, at a micro-batch of 2")["gib_per_gpu"]
    gradients = next(row for row in rows if row["part"] == "trained: gradients")["gib_per_gpu"]
    assert total == pytest.approx(measured["peak_memory_gib"], rel=0.02)
    assert total - gradients == pytest.approx(measured["peak_memory_gib"], rel=0.02)


@pytest.mark.parametrize("name", ["snapgen", "dit_xl_2"])
def test_autograd_keeps_what_a_gpu_was_measured_to_hold(name: str) -> None:
    """Training steps of benchmarks.unet: weights, two moments, bf16 copies, activations; gradients come as these go."""
    record = json.loads((experiments_dir() / "results" / "unet_cuda_64.json").read_text())
    (measured,) = [row for row in record["rows"][name] if row["task"] == "training" and not row["compiled"]]
    batch, subject = measured["batch"], SUBJECTS[name]
    with torch.device("meta"):
        network = subject.build(record["size"])
        x_BCHW = torch.empty(batch, network.in_channels, record["size"], record["size"])
        asked = torch.empty(batch), Conditioning(torch.empty(batch, subject.tokens, network.context_dim))
    weights = list(network.parameters())
    kept = saved(lambda: network(x_BCHW, *asked), weights, autocast=True)
    held = 3 * 4 * sum(weight.numel() for weight in weights) + kept.copies + kept.activations
    assert held / 2**30 == pytest.approx(measured["peak_memory_gib"], rel=0.02)


@pytest.mark.parametrize(
    ("delta", "words", "said"),
    [
        ({}, ["--gpus", "0"], "gpus is 0, memory 80.0, batch None; all must be above 0"),
        ({}, ["--batch", "0"], "batch 0; all must be above 0"),
        (
            {"trainer": {"precision": "16-mixed"}},
            [],
            "trainer.precision is 16-mixed; 32, 32-true, bf16-mixed, bf16-true",
        ),
        ({"trainer": {"strategy": "deepspeed"}}, [], "set --strategy ddp or fsdp2"),
        (
            {"model": {"class_path": "snapgen_pl.modules.decoder.TrainDecoder"}},
            [],
            "a TrainDecoder is not counted here",
        ),
        (
            {"model": {"init_args": {"autoencoder": declared("autoencoders.kl.KL", path="nobody/knows")}}},
            [],
            "the size of the autoencoder nobody/knows is not known here, and no folder is called so",
        ),
        (
            {"model": {"init_args": {"teacher": declared("teachers.run.RunTeacher", run="runs/gone")}}},
            [],
            "runs/gone/config.yaml does not exist; train it first",
        ),
    ],
)
def test_what_cannot_be_counted_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], delta: dict[str, Any], words: list[str], said: str
) -> None:
    files = ["--config", str(written(tmp_path, PRETRAIN)), "--config", str(written(tmp_path, delta, "delta.yaml"))]
    assert main(["table", "memory", *files, *words]) == 1
    assert said in capsys.readouterr().err


def test_stages_that_a_delta_appends_are_counted(tmp_path: Path) -> None:
    base = copy.deepcopy(PRETRAIN)
    base["model"]["init_args"]["denoiser"]["init_args"]["stages"] = [STAGE]
    delta = written(tmp_path, {"model": {"denoiser": {"stages+": [STAGE]}}}, "delta.yaml")
    whole, in_parts = sizes(written(tmp_path, PRETRAIN)), parts(recipe([written(tmp_path, base, "base.yaml"), delta]))
    assert {part.name: part.size for part in in_parts} == whole


def test_a_delta_alone_declares_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "memory", "--config", "t2i/kd_timestep_aware.yaml"]) == 1
    assert "declares no model with its class_path; a delta comes after its base" in capsys.readouterr().err
    assert main(["table", "memory"]) == 2
    assert "config: is required" in capsys.readouterr().err


def test_markdown_and_csv_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path, PRETRAIN))
    assert main(["table", "memory", "--config", file, "--gpus=2", "--format=csv"]) == 0
    assert capsys.readouterr().out.startswith("part,gib_per_gpu,scales_with,images\ntrained: weights,")
    assert main(["table", "memory", f"--config={file}", "--memory", "0.001"]) == 0
    assert "in 0.001 GiB: none fits |" in capsys.readouterr().out


def _unet_weights() -> int:
    """Of the network built by hand."""
    stages = [Stage(32, [Block(layers=1)], [Block(), Block(layers=1)]) for _ in range(2)]
    student = UNet(stages, middle_layers=1, in_channels=4, context_dim=16, head_dim=16)
    return sum(weight.numel() for weight in student.parameters())
