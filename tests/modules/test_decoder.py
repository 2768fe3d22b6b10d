from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.losses_by_time import LossesByTime
from callbacks.tensorboard import RunLogger
from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.checkpoints import LAST
from snapgen_pl.config_files import Value, class_value
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.distill.reconstruction_loss import ReconstructionLoss
from snapgen_pl.images import from_uint8, to_uint8
from snapgen_pl.metrics.frechet import frechet_distance, moments_of
from snapgen_pl.metrics.inception import Inception
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.models.decoder import Decoder, Stage
from snapgen_pl.models.patch_discriminator import PatchDiscriminator
from snapgen_pl.modules.decoder import TrainDecoder
from snapgen_pl.trained_run import built
from tests import distilled_run, tiny_run
from tests.decoder_run import ALONE, BATCH, SIDE, lpips_trunk, photo_data, train, train_decoder
from tests.golden_values import StepLosses
from tests.metrics.fidelity import random_weights
from tests.tiny_kl import kl


class Steps(tiny_run.Touched):
    """Keeps what each batch did to both networks."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[set[str]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: object) -> None:
        super().on_train_batch_end(trainer, pl_module)
        assert not outputs["terms"].t_B.any()
        self.terms.append({term.name for term in outputs["terms"].terms})


def ready(photos: Path, parts: Path, folder: Path, **options: Any) -> tuple[TrainDecoder, ImageBatch]:
    """A module after a step of each network, and the first training batch."""
    module = train_decoder(parts, **{"adversarial_from": 0, "warmup_images": 0, **options})
    train(module, photos, folder, 2, val_check_interval=None)
    data = photo_data(photos)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, ImageBatch)
    return module.train(), batch


RECONSTRUCTION = {"l1", "mse", "lpips", "distill"}


def test_the_decoder_begins_alone_and_then_both_take_turns(photos: Path, parts: Path, tmp_path: Path) -> None:
    steps = Steps()
    module = train_decoder(parts, discriminator_steps=2, warmup_images=0)
    saved = train(module, photos, tmp_path, 9, callbacks=[steps], val_check_interval=None)
    decoder, discriminator = {"decoder"}, {"discriminator"}
    assert steps.with_gradients == [decoder] * 3 + [discriminator, discriminator, decoder] * 2
    assert steps.moved == steps.with_gradients
    assert steps.terms == [RECONSTRUCTION] * 3 + [*[{"d_real", "d_fake"}] * 2, RECONSTRUCTION | {"adversarial"}] * 2
    assert module.loss_roles.keys() == RECONSTRUCTION | {"adversarial"}
    assert (saved["steps"], saved["images_seen"]) == ({"generator": 5, "discriminator": 4}, 5 * BATCH)


def test_a_count_within_a_step_takes_effect_after_it(photos: Path, parts: Path, tmp_path: Path) -> None:
    steps = Steps()
    module = train_decoder(parts, adversarial_from=BATCH, accumulate=2)
    train(module, photos, tmp_path, 3, callbacks=[steps], val_check_interval=None)
    assert steps.terms == [*[RECONSTRUCTION] * 2, *[{"d_real", "d_fake"}] * 2, *[RECONSTRUCTION | {"adversarial"}] * 2]


def test_losses_are_the_golden_ones(photos: Path, parts: Path, tmp_path: Path) -> None:
    steps = StepLosses()
    train(train_decoder(parts), photos, tmp_path, 7, callbacks=[steps], val_check_interval=None)
    steps.check("decoder")


def test_nothing_frozen_is_in_checkpoints_and_the_decoder_alone_is_averaged(
    photos: Path, parts: Path, tmp_path: Path
) -> None:
    saved = train(train_decoder(parts), photos, tmp_path, 4, val_check_interval=None)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"decoder", "discriminator"}
    assert {name.split(".")[0] for name in saved["ema"]["weights"]} == {"decoder"}
    assert saved["ema"]["images"] == ALONE


def test_the_terms_are_those_of_the_method(photos: Path, parts: Path, tmp_path: Path) -> None:
    module, batch = ready(photos, parts, tmp_path)
    terms = {term.name: term for term in module.loss_terms(batch).terms}
    assert [(term.name, term.role, term.weight) for term in list(terms.values())[:4]] == [
        ("l1", "task", 1.0),
        ("mse", "task", 0.5),
        ("lpips", "task", 1.0),
        ("distill", "kd", 0.25),
    ]
    image = batch.image_BCHW / 127.5 - 1
    raw = module.autoencoder.encode(image).draw(0, batch.position_B)
    assert not torch.equal(raw, module.autoencoder.encode(image).mean_BCHW)
    with torch.no_grad():
        decoded, full = module.decoder(raw), module.autoencoder.decode(raw)
        logits = module.discriminator(decoded), module.discriminator(image)
        lpips = LPIPS("alex", lpips_trunk(parts))(decoded, image)
    expected = {
        "l1": (decoded - image).abs().flatten(1).mean(1),
        "mse": (decoded - image).square().flatten(1).mean(1),
        "lpips": lpips,
        "distill": (decoded - full).abs().flatten(1).mean(1),
        "adversarial": -logits[0].mean(1),
    }
    for name, value_B in expected.items():
        torch.testing.assert_close(terms[name].value_B, value_B, msg=name)
    d_real, d_fake = module.discriminator_terms(batch).terms
    torch.testing.assert_close(d_real.value_B, (1 - logits[1]).clamp_min(0).mean(1))
    torch.testing.assert_close(d_fake.value_B, (1 + logits[0]).clamp_min(0).mean(1))


def test_the_adaptive_weight_makes_both_gradients_equally_long(photos: Path, parts: Path, tmp_path: Path) -> None:
    module, batch = ready(photos, parts, tmp_path, adversarial_weight=0.25)
    terms = module.loss_terms(batch).terms
    weight = terms[-1].weight
    assert isinstance(weight, Tensor)
    assert not weight.requires_grad
    last = module.decoder.output[-1]

    def gradient(loss: Tensor) -> Tensor:
        module.decoder.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        assert isinstance(last, nn.Conv2d)
        assert last.weight.grad is not None
        return last.weight.grad.clone()

    others = sum((term.weight * term.value_B.mean() for term in terms[:-1]), start=torch.zeros(()))
    rebuilding, fooling = gradient(others).norm(), gradient(terms[-1].value_B.mean()).norm()
    torch.testing.assert_close(weight, 0.25 * rebuilding / (fooling + 1e-4))
    torch.testing.assert_close(gradient(weight * terms[-1].value_B.mean()).norm(), 0.25 * rebuilding, rtol=0.05, atol=0)
    fooled = terms[-1].value_B.mean()
    assert module.adaptive_weight(1e6 * others, 1e-6 * fooled) == 1e4


def test_a_step_of_each_network_does_what_it_is_for(photos: Path, parts: Path, tmp_path: Path) -> None:
    module, batch = ready(photos, parts, tmp_path)

    def logits() -> tuple[float, float]:
        """Of images, and of decoded ones."""
        image = from_uint8(batch.image_BCHW)
        with torch.no_grad():
            decoded = module.decoder(module.autoencoder.encode(image).draw(0, batch.position_B))
            return float(module.discriminator(image).mean()), float(module.discriminator(decoded).mean())

    def descend(network: nn.Module, loss: Tensor) -> None:
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.optim.SGD(network.parameters(), lr=1e-2).step()

    real, fake = logits()
    d_real, d_fake = module.discriminator_terms(batch).terms
    descend(module.discriminator, (d_real.value_B + d_fake.value_B).mean())
    told_real, told_fake = logits()
    assert told_real - told_fake > real - fake
    descend(module.decoder, module.loss_terms(batch).terms[-1].value_B.mean())
    assert logits()[1] > told_fake


@pytest.mark.parametrize("stop", [2, 4, 5])  # before the switch, in the discriminator's first turn, after it
def test_stopping_and_resuming_across_the_switch_changes_nothing(
    photos: Path, parts: Path, tmp_path: Path, stop: int
) -> None:
    straight = train(train_decoder(parts), photos, tmp_path / "straight", 8)
    train(train_decoder(parts), photos, tmp_path / "parts", stop)
    resumed = train(train_decoder(parts), photos, tmp_path / "parts", 8, resume=True)
    assert resumed["steps"] == {"generator": 5, "discriminator": 3}
    assert tiny_run.differing(resumed, straight) == []


def test_which_term_went_astray_is_said(photos: Path, parts: Path, tmp_path: Path) -> None:
    module = train_decoder(parts, warmup_images=0)
    with torch.no_grad():
        module.discriminator.logit.weight[:] = torch.nan
    with pytest.raises(FloatingPointError, match="loss term 'd_real' is nan at step"):
        train(module, photos, tmp_path, 6, every_n_steps=10)
    assert not (tmp_path / LAST).exists()


def test_whole_held_out_photographs_are_measured_also_as_the_autoencoder_decodes_them(
    photos: Path, parts: Path, tmp_path: Path
) -> None:
    logger = RunLogger(str(tmp_path), name="", version="", default_hp_metric=False)
    module = train_decoder(parts)
    train(module, photos, tmp_path, 6, logger=logger, log_every_n_steps=1, limit_val_batches=1.0, val_check_interval=3,
          callbacks=[LossesByTime()])  # fmt: skip
    scalars = distilled_run.scalars(tmp_path)
    assert {f"val/{name}{of}" for name in ("psnr", "ssim", "lpips") for of in ("", "_full")} <= scalars.keys()
    assert {"train/l1", "train/d_real", "train/adversarial", "train/adversarial_weight"} <= scalars.keys()
    assert (len(scalars["val/psnr"]), len(scalars["val/psnr_full"])) == (2, 1)

    data = photo_data(photos)
    data.setup("fit")
    lpips = LPIPS("alex", lpips_trunk(parts))
    psnr, distance = [], []
    for batch in data.val_dataloader():
        assert isinstance(batch, ImageBatch)
        image = batch.image_BCHW
        full = to_uint8(module.autoencoder.decode(module.autoencoder.encode(from_uint8(image)).mean_BCHW))
        psnr.append(10 * torch.log10(255**2 / (full.float() - image).square().mean()))
        distance.append(lpips(from_uint8(full), from_uint8(image)))
    assert len(psnr) > 1
    (told,) = scalars["val/psnr_full"].values()
    assert told == pytest.approx(float(torch.stack(psnr).mean()), abs=1e-3)
    (told,) = scalars["val/lpips_full"].values()
    assert told == pytest.approx(float(torch.stack(distance).mean()), rel=1e-3)


def test_given_inception_the_frechet_distance_of_what_is_decoded_is_told(
    photos: Path, parts: Path, tmp_path: Path
) -> None:
    data = photo_data(photos)
    data.setup("validate")
    originals = [batch.image_BCHW for batch in data.val_dataloader()]
    fitted = torch.cat([F.interpolate(image.float(), (48, 48)).to(torch.uint8) for image in originals])
    weights = random_weights(tmp_path / "inception.pth", fitted)
    module = train_decoder(parts, inception=weights)
    trainer = tiny_run.trainer_for(tmp_path / "run", 1, averaged=("decoder",), limit_val_batches=1.0)
    found = trainer.validate(module, datamodule=photo_data(photos), verbose=False)[0]
    inception = Inception(weights)
    for suffix, decode in (("", module.decoder), ("_full", module.autoencoder.decode)):
        with torch.no_grad():
            decoded = [to_uint8(decode(module.autoencoder.encode(from_uint8(image)).mean_BCHW)) for image in originals]
        moments = [moments_of(inception(image).pool_BD for image in images) for images in (originals, decoded)]
        expected = frechet_distance(*moments).value
        assert expected > 0.1
        assert found[f"val/rfid{suffix}@{len(originals)}"] == pytest.approx(expected, rel=1e-4)


def test_a_single_photograph_has_no_frechet_distance(photos: Path, parts: Path, tmp_path: Path) -> None:
    data = photo_data(photos)
    data.image_source = ImageFolder(str(photos), validation_fraction=0.01)
    module = train_decoder(parts, inception=tmp_path / "inception.pth")
    with pytest.raises(ValueError, match="the validation has 1 image"):
        train(module, photos, tmp_path, 1, data=data)


def test_without_lpips_no_weights_are_needed(photos: Path, parts: Path, tmp_path: Path) -> None:
    missing = Path("nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        train(train_decoder(parts, reconstruction=ReconstructionLoss(trunk=missing)), photos, tmp_path, 1)
    module = train_decoder(parts, reconstruction=ReconstructionLoss(lpips_weight=0.0, trunk=missing))
    train(module, photos, tmp_path, 1, val_check_interval=1)
    assert (module.reconstruction.lpips, "lpips" in module.loss_roles) == (None, False)


def test_squares_of_image_data_serve_too(photos: Path, parts: Path, tmp_path: Path) -> None:
    data = ImageData(ImageFolder(str(photos)), image_size=SIDE, batch_size=BATCH)
    assert train(train_decoder(parts), photos, tmp_path, 1, data=data)["images_seen"] == BATCH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": Decoder([Stage(32, 1)] * 3, in_channels=8)}, r"set --model\.decoder\.in_channels 4"),
        ({"decoder": Decoder([Stage(32, 1)] * 2, in_channels=4)}, "2 pixels of a latent position"),
        ({"distill_weight": -1.0}, r"distill_weight is -1\.0"),
        ({"reconstruction": ReconstructionLoss(l1_weight=0.0, lpips_weight=0.0)}, "give one above 0"),
        ({"adversarial_weight": 0.0}, r"adversarial_weight is 0\.0"),
        ({"warmup_images": 8, "decay_images": 8}, "must come after warmup_images, 8"),
        ({"accumulate": 0}, "accumulate 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {
        "decoder": Decoder([Stage(32, 1)] * 3, in_channels=4),
        "autoencoder": PatchPCA(4, 4),
        "discriminator": PatchDiscriminator(32),
    }
    with pytest.raises(ValueError, match=message):
        TrainDecoder(**fitting | options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_size": 30}, "image_size is 30, not a multiple of the autoencoder's 4"),
        ({"multiple": 6}, "multiple is 6, not a multiple of the autoencoder's 4"),
        ({"image_size": 8}, "too small for the discriminator, which takes 12"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    photos: Path, parts: Path, tmp_path: Path, data: dict[str, int], message: str
) -> None:
    given = photo_data(photos)
    for name, value in data.items():
        setattr(given, name, value)
    with pytest.raises(ValueError, match=message):
        train(train_decoder(parts), photos, tmp_path, 1, data=given)


def run_of_a_decoder(parts: Path, photos: Path, folder: Path, autoencoder: Value) -> Path:
    """And the configuration that says whose latents it is for."""
    built_here = built({"autoencoder": autoencoder}, autoencoder=Autoencoder).autoencoder
    module = train_decoder(parts, autoencoder=built_here, distill_weight=0.0)
    train(module, photos, folder, 3, val_check_interval=None)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"autoencoder": autoencoder}}))
    return folder


def test_it_begins_with_the_averaged_weights_of_a_run(photos: Path, parts: Path, tmp_path: Path) -> None:
    run_of_a_decoder(parts, photos, tmp_path / "first", class_value(KL, path=str(parts / "vae")))
    given = tiny_run.load(tmp_path / "first" / LAST)["ema"]["weights"]

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for name, weight in given.items():
                assert torch.equal(pl_module.get_parameter(name), weight), name

    module = train_decoder(parts, init_from=str(tmp_path / "first"))
    train(module, photos, tmp_path / "second", 1, callbacks=[Start()], val_check_interval=None)
    assert module.began_from is not None
    assert module.began_from["step"] == 3
    module.decoder = Decoder([Stage(64, 1)] * 3, in_channels=4)
    with pytest.raises(ValueError, match="declare decoder as"):
        train(module, photos, tmp_path / "third", 1)


def test_it_does_not_begin_with_a_decoder_of_other_latents(photos: Path, parts: Path, tmp_path: Path) -> None:
    """But with one of the same weights behind another shift, which raw latents do not know."""
    network = kl()
    with torch.no_grad():
        network.encoder.conv_in.weight.mul_(1.5)
    network.save_pretrained(tmp_path / "vae")
    foreign = run_of_a_decoder(parts, photos, tmp_path / "foreign", class_value(KL, path=str(tmp_path / "vae")))
    with pytest.raises(ValueError, match=r"the decoder of .*foreign was trained on the latents of other weights \("):
        train(train_decoder(parts, init_from=str(foreign)), photos, tmp_path / "run", 1)
    shifted = class_value(KL, path=str(parts / "vae"), shift=0.5)
    own = run_of_a_decoder(parts, photos, tmp_path / "own", shifted)
    module = train_decoder(parts, init_from=str(own))
    assert train(module, photos, tmp_path / "run", 1, val_check_interval=None)["global_step"] == 1


def test_it_decodes_the_fitted_latents_of_the_run_that_it_begins_with(
    photos: Path, parts: Path, tmp_path: Path
) -> None:
    first = run_of_a_decoder(parts, photos, tmp_path / "first", class_value(PatchPCA, patch=4, channels=4))
    module = train_decoder(parts, autoencoder=PatchPCA(4, 4), init_from=str(first))
    data = photo_data(photos, validation_fraction=0.5)  # to which another transform would be fitted
    train(module, photos, tmp_path / "second", 1, data=data, val_check_interval=None)
    assert (tmp_path / "second" / FILE).read_bytes() == (first / FILE).read_bytes()
