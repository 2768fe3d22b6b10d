from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks.ema import EMA
from callbacks.sample_metrics import SampleMetrics
from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.label_data import LabelData
from snapgen_pl.data.requests import Request
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Euler
from snapgen_pl.metrics.draws import uniform
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, SampleMetric, Score
from snapgen_pl.metrics.sample_report import check_comparable, read_report
from snapgen_pl.models.peers.dit import DiT, position_table
from snapgen_pl.modules.released import Released
from snapgen_pl.released.sit import ReleasedSiT, sit_names
from tests.tiny_kl import kl

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "imagenet256" / "released"


def sit(folder: Path) -> ReleasedSiT:
    """A small SiT with random weights, its file and autoencoder in a folder."""
    kl().save_pretrained(folder / "vae")
    drawer = ReleasedSiT(
        str(folder / "sit.pt"), KL(str(folder / "vae")), 32, 5, 32, 1, 4, sampler=Euler(2), guidance=Guidance(1.5)
    )
    torch.manual_seed(0)
    parts = {"denoiser": DiT(4, 32, 1, 4, context_dim=32, learn_sigma=True), "labels": ClassTokens(5, 1, 32)}
    state = torch.nn.ModuleDict(parts).state_dict()
    tensors = {theirs: torch.randn_like(state[ours]) * 0.2 for ours, theirs in sit_names(1).items()}
    torch.save(tensors | {"pos_embed": position_table(4, 4, 32, torch.device("cpu"))[None]}, folder / "sit.pt")
    return drawer


def trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


def test_predict_reads_the_weights_and_draws_every_position(tmp_path: Path) -> None:
    module = Released(sit(tmp_path), seed=3)
    assert not list(module.parameters())
    data = LabelData(5, samples=5, batch_size=2)
    batches = trainer(tmp_path).predict(module, data)
    assert batches is not None
    images = torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    assert images.shape == (5, 3, 32, 32)
    requests = list(data.predict_dataloader())
    whole = Request(*(torch.cat(parts) for parts in zip(*requests, strict=True)))
    assert (module.sample(whole).int() - images.int()).abs().max() <= 1
    assert images.float().std(dim=0).mean() > 1
    assert (module.images_seen, module.sampler, module.guidance) == (0, Euler(2), Guidance(1.5))


class Brightness(SampleMetric):
    """The mean of pixels; it brings what it compares with."""

    network, least_images, brings_reference = "pixels", 1, True

    def protocol(self) -> Facts:
        return {"reference": 0}

    def prepare(self, device: torch.device) -> None:
        pass

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        return {"pixels": image_BCHW.float().mean(dim=(2, 3))}

    def set_reference(self, features: FeatureSet) -> None:
        raise AssertionError("it brings its own")

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        return {"brightness": Score(float(torch.cat(list(features.read("pixels"))).mean()))}


def test_released_weights_are_measured_at_several_guidances_without_any_training_image(tmp_path: Path) -> None:
    metrics = SampleMetrics(
        [Brightness()], test_samples=5, batch_size=2, labels="uniform", guidances=[Guidance(1.5), Guidance(4.0)]
    )
    module = Released(sit(tmp_path), seed=3)
    # The command line adds EMA to every run; it has nothing to average here.
    trainer(tmp_path, callbacks=[metrics, EMA(half_life_images=20)]).test(module, LabelData(5), verbose=False)
    reports = [read_report(path) for path in (tmp_path / "reports").glob("*.json")]
    assert {report.drawing["guidance"] for report in reports} == {repr(Guidance(1.5)), repr(Guidance(4.0))}
    for report in reports:
        assert (report.weights["which"], report.weights["images_seen"]) == ("as released", 0)
        assert report.weights["sha256"] == module.drawer.describe().weights
        assert (report.measurement["samples"], report.measurement["labels"]) == (5, "uniform")
        guidance = Guidance(1.5) if "1.5" in str(report.drawing["guidance"]) else Guidance(4.0)
        images = torch.cat(
            [
                module.sample(request, guidance=guidance)
                for request in (uniform(5, 5).at(batch) for batch in ([0, 1], [2, 3], [4]))
            ]
        )
        assert report.values["brightness"].value == pytest.approx(float(images.float().mean()), abs=1e-3)
    check_comparable(dict(zip("ab", reports, strict=True)))


def test_released_weights_are_not_measured_by_the_frequencies_of_images_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not of LabelData"):
        trainer(tmp_path, callbacks=[SampleMetrics([Brightness()])]).test(Released(sit(tmp_path)), LabelData(5))


def test_other_verbs_and_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use test, not fit"):
        Released(sit(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="seed is -1"):
        Released(sit(tmp_path), seed=-1)


def test_a_request_may_bring_its_guidance_and_no_other_sampler(tmp_path: Path) -> None:
    drawer = sit(tmp_path)
    drawer.ready(tmp_path)
    module, request = Released(drawer, seed=3), Request(torch.tensor([0, 1]), torch.tensor([0, 1]))
    own, strong = module.sample(request, Euler(2), Guidance(1.5)), module.sample(request, guidance=Guidance(4.0))
    assert torch.equal(own, module.sample(request))
    assert torch.equal(strong, drawer.draw(3, request, Guidance(4.0)))
    assert not torch.equal(strong, own)
    with pytest.raises(ValueError, match=r"set model\.drawer\.sampler"):
        module.sample(request, Euler(3))


def test_the_command_line_draws_from_an_experiments_file_at_small_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sit(tmp_path)
    drawer = {"path": tmp_path / "sit.pt", "autoencoder.path": tmp_path / "vae", "image_size": 32, "num_classes": 5}
    sizes = {"hidden": 32, "depth": 1, "heads": 4, "sampler.steps": 2}
    words = [word for key, value in (drawer | sizes).items() for word in (f"--model.drawer.{key}", str(value))]
    words += ["--data.num_classes", "5", "--data.samples", "3", "--trainer.callbacks", "null", "--runs", str(tmp_path)]
    words += ["--trainer.accelerator", "cpu"]
    assert main(["predict", "--config", str(EXPERIMENTS / "sit_xl.yaml"), *words]) == 0
    assert f"SiT: {tmp_path / 'sit.pt'}, 1 blocks of width 32" in caplog.text
