"""Sharded over two processes, a run does what one process does, and its checkpoints serve either."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snapgen_pl.fsdp import match_layouts
from snapgen_pl.metrics.sample_report import read_report
from snapgen_pl.models.unet import UNet
from tests import pretrain_run, sample_run

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
CALLBACKS = """\
trainer:
  callbacks:
    - class_path: callbacks.sample_grid.SampleGrid
      init_args: {rows: 2}
    - class_path: callbacks.sample_metrics.SampleMetrics  # three chunks on two processes: one is made again and dropped
      init_args:
        metrics: [{class_path: snapgen_pl.metrics.effnet_distances.EffNetDistances, init_args: {subset_size: 16}}]
        samples: 24
        batch_size: 8
        control_images: 16
"""
SHARDED = (
    *("--trainer.devices", "2", "--trainer.strategy", "snapgen_pl.fsdp.FSDP2"),
    *("--trainer.strategy.process_group_backend", "gloo"),
)


def fit(images: Path, runs: Path, name: str, steps: int, *more: str) -> None:
    (runs / "callbacks.yaml").write_text(CALLBACKS)
    words = [
        *(
            "fit",
            "--config",
            str(QUICKSTART),
            "--config",
            str(runs / "callbacks.yaml"),
            "--runs",
            str(runs),
            "--name",
            name,
        ),
        *("--data.source", "snapgen_pl.data.image_folder.ImageFolder", "--data.source.root", str(images)),
        *("--data.image_size", "32", "--model.image_size", "32", "--trainer.accelerator", "cpu"),
        *("--model.decay_images", "null", "--model.sampler.steps", "2", "--trainer.val_check_interval", "2"),
        # Adam's first steps have the size of the learning rate whatever the gradient, so that differences in the last
        # bit of gradients near zero would show.
        *("--model.optimizer.eps", "1e-3", "--model.optimizer.lr", "1e-3", "--model.warmup_images", "0"),
        *("--trainer.max_steps", str(steps), *more),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "snapgen_pl", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_close(left: Path, right: Path) -> None:
    a, b = (torch.load(run / "last.ckpt", weights_only=True) for run in (left, right))
    assert a["images_seen"] == b["images_seen"]
    for here, there in ((a["state_dict"], b["state_dict"]), (a["ema"]["weights"], b["ema"]["weights"])):
        assert here.keys() == there.keys()
        for key, weight in here.items():
            torch.testing.assert_close(weight, there[key], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_sharded_training_equals_one_process_and_its_checkpoint_serves_both(tmp_path: Path) -> None:
    images = sample_run.image_folder(tmp_path / "images")
    fit(images, tmp_path, "one", 4)
    fit(images, tmp_path, "sharded", 2, *SHARDED)
    fit(images, tmp_path, "sharded", 4, *SHARDED, "--ckpt_path", "last")
    assert_close(tmp_path / "sharded", tmp_path / "one")
    assert (tmp_path / "sharded" / "samples" / "000000032.png").exists()
    one, sharded = (read_report(tmp_path / name / "metrics.json") for name in ("one", "sharded"))
    assert sharded.values["kid_effnet"].value == pytest.approx(one.values["kid_effnet"].value, abs=0.05)
    assert sharded.controls == one.controls
    assert sharded.measurement == one.measurement
    for name, more in (("one", ()), ("sharded", SHARDED)):
        fit(images, tmp_path, name, 6, "--ckpt_path", "last", *more)
    assert_close(tmp_path / "sharded", tmp_path / "one")
    fit(images, tmp_path, "sharded", 8, "--ckpt_path", "last")  # on one process
    fit(images, tmp_path, "one", 8, "--ckpt_path", "last")
    assert_close(tmp_path / "sharded", tmp_path / "one")


def test_units_hold_every_repeated_part_once() -> None:
    unet: UNet = pretrain_run.pretrain().denoiser
    units = list(unet.units())
    inside = [part for unit in units for part in unit.modules()]
    assert len(inside) == len(set(map(id, inside)))
    outside = {
        name.split(".")[0]
        for name, p in unet.named_parameters()
        if not any(p is q for u in units for q in u.parameters())
    }
    assert outside == {"time", "conv_in", "context", "norm_out", "conv_out"}


def test_states_are_laid_out_as_their_parameters_are() -> None:
    def kernel(fmt: torch.memory_format) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.arange(64.0).view(4, 4, 2, 2).contiguous(memory_format=fmt))

    plain, last = kernel(torch.contiguous_format), kernel(torch.channels_last)
    here, there = (torch.optim.AdamW([parameter], lr=0.1, fused=True) for parameter in (plain, last))
    plain.grad = torch.linspace(-1, 1, 64).view(4, 4, 2, 2)
    here.step()
    last.data.copy_(plain.data)
    there.load_state_dict(copy.deepcopy(here.state_dict()))
    match_layouts(there)
    last.grad = plain.grad.contiguous(memory_format=torch.channels_last)
    for optimizer in (here, there):
        optimizer.step()
    torch.testing.assert_close(last, plain)
