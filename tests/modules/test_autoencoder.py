from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.tensorboard import RunLogger
from snapgen_pl import rng
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.images import from_uint8, to_uint8
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.modules.autoencoder import TrainAutoencoder
from tests import decoder_run, distilled_run, tiny_run
from tests.decoder_run import CONFIG, lpips_trunk, photo_data, train_autoencoder
from tests.golden_values import StepLosses


def train(
    module: TrainAutoencoder, photos: Path, folder: Path, steps: int, resume: bool = False, **options: Any
) -> dict[str, Any]:
    L.seed_everything(123 if resume else 0, verbose=False)
    trainer = tiny_run.trainer_for(folder, steps, averaged=("network",), **options)
    trainer.fit(module, datamodule=photo_data(photos), ckpt_path=newest(folder) if resume else None)
    return tiny_run.load(folder / LAST)


def first_batch(photos: Path) -> ImageBatch:
    data = photo_data(photos)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, ImageBatch)
    return batch


def test_the_terms_are_those_of_the_method(photos: Path, parts: Path, tmp_path: Path) -> None:
    module = train_autoencoder(parts)
    train(module, photos, tmp_path, 1, val_check_interval=None)
    batch = first_batch(photos)
    terms = {term.name: term for term in module.loss_terms(batch).terms}
    assert {name: term.weight for name, term in terms.items()} == {"l1": 1.0, "mse": 0.5, "lpips": 1.0, "kl": 1e-3}
    assert terms.keys() == module.loss_roles.keys()
    image = batch.image_BCHW / 127.5 - 1
    with torch.no_grad():
        mean, log_variance = module.network.encode(image).latent_dist.parameters.chunk(2, dim=1)
        noise = rng.normal(0, rng.Stream.POSTERIOR, batch.position_B, tuple(mean.shape[1:]))
        decoded = module.network.decode(mean + (log_variance / 2).exp() * noise).sample
        lpips = LPIPS("alex", lpips_trunk(parts))(decoded, image)
    # KL(N(m, s^2) || N(0, 1)), summed over the latent, over the number of values of the image.
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
    expected = {
        "l1": (decoded - image).abs().flatten(1).mean(1),
        "mse": (decoded - image).square().flatten(1).mean(1),
        "lpips": lpips,
        "kl": divergence / image[0].numel(),
    }
    for name, value_B in expected.items():
        torch.testing.assert_close(terms[name].value_B, value_B, msg=name)


def test_losses_are_the_golden_ones(photos: Path, parts: Path, tmp_path: Path) -> None:
    steps = StepLosses()
    train(train_autoencoder(parts), photos, tmp_path, 4, callbacks=[steps], val_check_interval=None)
    steps.check("autoencoder")


def test_training_brings_images_back_and_what_is_saved_is_what_was_validated(
    photos: Path, parts: Path, tmp_path: Path
) -> None:
    module = train_autoencoder(parts, optimizer=lambda weights: torch.optim.AdamW(weights, lr=3e-3))
    module.reconstruction.ready(module.device)
    before = module.loss_terms(first_batch(photos)).terms[0].value_B.mean()
    logger = RunLogger(str(tmp_path), name="", version="", default_hp_metric=False)
    train(module, photos, tmp_path, 40, limit_val_batches=1.0, val_check_interval=40, logger=logger)
    after = module.loss_terms(first_batch(photos)).terms[0].value_B.mean()
    assert after < 0.8 * before
    psnr = distilled_run.scalars(tmp_path)["val/psnr"]

    averaged = train_autoencoder(parts)
    weights = tiny_run.load(tmp_path / LAST)["ema"]["weights"]
    averaged.load_state_dict(weights)
    averaged.network.save_pretrained(tmp_path / "vae")
    kl = KL(str(tmp_path / "vae"))
    kl.ready(tmp_path, ())
    data = photo_data(photos)
    data.setup("validate")
    found = []
    for batch in data.val_dataloader():
        assert isinstance(batch, ImageBatch)
        decoded = to_uint8(kl.decode(kl.encode(from_uint8(batch.image_BCHW)).mean_BCHW))
        found.append(10 * torch.log10(255**2 / (decoded.float() - batch.image_BCHW).square().mean()))
    (told,) = psnr.values()
    assert told == pytest.approx(float(torch.stack(found).mean()), abs=0.02)


def test_a_resumed_run_ends_in_the_same_bits(photos: Path, parts: Path, tmp_path: Path) -> None:
    whole = train(train_autoencoder(parts), photos, tmp_path / "whole", 4, val_check_interval=None)
    train(train_autoencoder(parts), photos, tmp_path / "halves", 2, val_check_interval=None)
    halves = train(train_autoencoder(parts), photos, tmp_path / "halves", 4, resume=True, val_check_interval=None)
    assert whole["images_seen"] == halves["images_seen"] == 4 * decoder_run.BATCH
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, halves["state_dict"][name]), name


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (CONFIG | {"latent_chanels": 4}, {}, "latent_chanels"),
        (CONFIG, {"kl_weight": -1.0}, r"kl_weight is -1\.0"),
        (CONFIG, {"warmup_images": 8, "decay_images": 8}, "must come after warmup_images, 8"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(config: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainAutoencoder(config, **options)
