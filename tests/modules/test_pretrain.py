import json
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

from callbacks.run_manifest import RunManifest
from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import ImageBatch, LatentBatch
from snapgen_pl.images import to_uint8
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.modules.training import rate
from tests import bucket_run, pretrain_run, sample_run, tiny_run
from tests.distilled_run import Distilled
from tests.golden_values import check_golden


class Recorder(L.Callback):
    """Keeps the loss and gradient norm of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        gradients = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.stack(gradients).norm().item())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: dict, *_: object) -> None:  # type: ignore[type-arg]
        self.losses.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def attached(images: Path, folder: Path, **options: object) -> Pretrain:
    """A module set up as fit does it, with weights that are not at their zero start."""
    module, recorder = sample_run.module(**options), Recorder()
    sample_run.trainer(folder, [recorder], steps=2).fit(module, datamodule=sample_run.data(images))
    return module


def train(images: Path, folder: Path, steps: int, **options: object) -> Recorder:
    recorder = Recorder()
    L.seed_everything(0, verbose=False)
    module = sample_run.module(warmup_images=16)
    sample_run.trainer(folder, [recorder], steps, **options).fit(module, datamodule=sample_run.data(images))
    return recorder


def test_losses_and_gradients_are_the_golden_ones(images: Path, tmp_path: Path) -> None:
    recorder = train(images, tmp_path, 8)
    check_golden("pretrain", recorder.losses, {"gradient_norms": recorder.norms})


def test_accumulated_batches_equal_the_whole(images: Path, tmp_path: Path) -> None:
    whole = train(images, tmp_path / "whole", 3)
    parts = train(images, tmp_path / "parts", 3, accumulate_grad_batches=2)
    # Lightning reports each part's loss divided by their number.
    assert [2 * sum(parts.losses[i : i + 2]) / 2 for i in (0, 2, 4)] == pytest.approx(whole.losses, rel=1e-5)
    assert parts.norms == pytest.approx(whole.norms, rel=1e-4)


def test_a_samples_loss_does_not_depend_on_its_batch(images: Path, tmp_path: Path) -> None:
    module = attached(images, tmp_path)
    batch = next(iter(sample_run_training_batches(module)))
    whole = module.training_step(batch, 0)["terms"]
    for row in (0, 5):
        alone = module.training_step(ImageBatch(*(part[row : row + 1] for part in batch[:3])), 0)["terms"]
        assert alone.t_B[0] == whole.t_B[row]
        torch.testing.assert_close(alone.terms[0].value_B[0], whole.terms[0].value_B[row], rtol=1e-4, atol=1e-5)


def sample_run_training_batches(module: Pretrain) -> list[ImageBatch]:
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # no loop runs
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    batch = next(data.training_images(8))
    return [batch._replace(position_B=torch.arange(100, 108))]


def test_a_request_gives_the_same_images_whatever_batch_it_comes_in(images: Path, tmp_path: Path) -> None:
    module = attached(images, tmp_path)
    request = Request(torch.tensor([0, 1, 2]), torch.tensor([7, 8, 9]))
    whole = module.sample(request)
    assert whole.shape == (3, 3, sample_run.SIZE, sample_run.SIZE)
    assert whole.dtype == torch.uint8
    alone = module.sample(Request(*(part[1:2] for part in request)))
    assert (alone[0].int() - whole[1].int()).abs().max() <= 1
    other = module.sample(Request(torch.tensor([1]), torch.tensor([10])))
    assert not torch.equal(other, alone)


def test_the_autoencoder_stays_out_of_checkpoints_and_optimizers(images: Path, tmp_path: Path) -> None:
    module = attached(images, tmp_path)
    assert all(name.startswith(("denoiser.", "conditioner.")) for name in module.state_dict())
    assert not any("basis" in name for name, _ in module.named_parameters())
    assert not module.autoencoder.training
    optimized = {id(p) for group in module.optimizers().param_groups for p in group["params"]}  # type: ignore[union-attr]
    assert optimized == {id(p) for p in module.parameters()}


def test_validation_losses_do_not_depend_on_the_runs_seed(images: Path, tmp_path: Path) -> None:
    losses = []
    for seed in (1, 2):
        module = sample_run.module(seed=seed)
        trainer = sample_run.trainer(tmp_path / str(seed), [], logger=False)
        losses.append(trainer.validate(module, sample_run.data(images), verbose=False)[0])
    assert losses[0] == losses[1]
    assert losses[0]["val/loss"] > 0
    assert any(name.startswith("val_loss_by_t/") for name in losses[0])


def test_every_term_is_validated_and_the_tasks_as_if_it_were_alone(tmp_path: Path) -> None:
    images = pretrain_run.draw_images(tmp_path / "images")
    logged = []
    for kind in (Pretrain, Distilled):
        L.seed_everything(0, verbose=False)
        module = pretrain_run.pretrain(kind)
        trainer = sample_run.trainer(tmp_path, [], logger=False)
        logged += trainer.validate(module, pretrain_run.image_data(images), verbose=False)
    alone, both = logged
    added = {name: both.pop(name) for name in both.keys() - alone.keys()}
    assert both == alone
    assert len(added) == len(alone)
    assert added.keys() == {name.replace("loss", "kd") for name in alone}
    # The untrained student says 0, the teacher what it says for the student's x_t.
    assert 0 < added["val/kd"] != alone["val/loss"]


def test_the_learning_rate_rises_and_falls_linearly_in_images() -> None:
    assert [rate(seen, 100, None) for seen in (0, 50, 100, 900)] == [0, 0.5, 1, 1]
    assert [rate(seen, 100, 300) for seen in (50, 100, 200, 300, 400)] == [0.5, 1, 0.5, 0, 0]
    assert rate(0, 0, None) == 1


def test_parts_that_do_not_fit_are_refused_with_the_remedy(images: Path, tmp_path: Path) -> None:
    good = sample_run.module()
    with pytest.raises(ValueError, match=r"--model\.denoiser\.in_channels 6"):
        Pretrain(good.denoiser, good.conditioner, PatchPCA(4, 6), 32)
    with pytest.raises(ValueError, match=r"conditioner\.context_dim 7"):
        Pretrain(good.denoiser, ClassTokens(3, 1, 7), PatchPCA(4, 8), 32)
    with pytest.raises(ValueError, match="image_size 30 is not a multiple"):
        Pretrain(good.denoiser, good.conditioner, PatchPCA(4, 8), 30)
    few = Pretrain(good.denoiser, ClassTokens(2, 1, 16), PatchPCA(4, 8), 32)
    with pytest.raises(ValueError, match=r"--model\.conditioner\.num_classes 3 or more"):
        sample_run.trainer(tmp_path, []).fit(few, datamodule=sample_run.data(images))
    small = ImageData(ImageFolder(images), image_size=16, batch_size=8)
    with pytest.raises(ValueError, match=r"data\.image_size is 16, model\.image_size 32"):
        sample_run.trainer(tmp_path, []).fit(good, datamodule=small)


def test_a_manifest_tells_the_latents_and_a_resumed_run_is_told_where_they_changed(tmp_path: Path) -> None:
    drawn, run = pretrain_run.draw_images(tmp_path / "images"), tmp_path / "run"
    pretrain_run.train(drawn, run, 1, callbacks=[RunManifest()])
    kept = PatchPCA(patch=4, channels=4)
    kept.load(run / FILE)
    (start,) = json.loads((run / "manifest.json").read_text())["starts"]
    assert start["autoencoder"] == kept.identity()
    save_file(load_file(run / FILE) | {"std": torch.ones(4)}, run / FILE)
    with pytest.warns(
        UserWarning, match=r"the autoencoder changed since the run's last start: weights was '\w{64}', is"
    ):
        pretrain_run.train(drawn, run, 2, resume=True, callbacks=[RunManifest()])


def test_latents_are_decoded_in_the_autoencoders_own_precision(images: Path, tmp_path: Path) -> None:
    module = attached(images, tmp_path)
    mean_BCHW = torch.randn(3, *module.latent_shape)
    batch = LatentBatch(Posterior(mean_BCHW.half()), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    expected = to_uint8(module.autoencoder.decode(mean_BCHW.half().float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.images_of(batch), expected)


def test_buckets_that_the_networks_do_not_divide_are_refused_at_once(tmp_path: Path) -> None:
    data = bucket_run.image_data(bucket_run.draw_images(tmp_path / "images"), buckets=Buckets(16, 4, group=8))
    with pytest.raises(ValueError, match=r"data\.buckets\.step 4 is of no multiples of 8 pixels"):
        tiny_run.trainer_for(tmp_path, 1).fit(pretrain_run.pretrain(classes=3), datamodule=data)
