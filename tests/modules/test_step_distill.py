import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks.losses_by_time import LossesByTime
from callbacks.run_manifest import RunManifest
from callbacks.tensorboard import RunLogger
from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl import rng
from snapgen_pl.checkpoints import LAST
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.data.source import Batch
from snapgen_pl.distill.adversarial import AdversarialLoss
from snapgen_pl.flow.samplers import Euler, Renoising
from snapgen_pl.flow.timesteps import LogitNormal
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.modules.step_distill import StepDistill
from snapgen_pl.teachers.run import RunTeacher
from snapgen_pl.trained_run import open_run
from tests import distill_run, distilled_run, pretrain_run, tiny_run
from tests.distill_run import step_distill, train
from tests.golden_values import StepLosses

TIMES = Euler(4).times()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_run.draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's; to be read only."""
    return distill_run.teacher_run(images, tmp_path_factory.mktemp("run"))


class Steps(tiny_run.Touched):
    """Keeps what each step did to both networks."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[dict[str, float]] = []
        self.times: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: object) -> None:
        super().on_train_batch_end(trainer, pl_module)
        self.terms.append({term.name: float(term.value_B.mean()) for term in outputs["terms"].terms})
        self.times.append(outputs["terms"].t_B)


def ready(images: Path, run: Path, folder: Path, **options: Any) -> tuple[StepDistill, Batch]:
    """A module after a step of each network, and the first training batch."""
    module = step_distill(run, **options)
    train(module, images, folder, 2, val_check_interval=None)
    data = pretrain_run.image_data(images)
    data.setup("fit")
    return module.train(), next(iter(data.train_dataloader()))


def test_networks_take_turns_and_the_other_one_is_frozen(images: Path, run: Path, tmp_path: Path) -> None:
    steps, module = Steps(), step_distill(run, discriminator_steps=2, warmup_images=0)
    saved = train(module, images, tmp_path, 6, callbacks=[steps], val_check_interval=None)
    discriminator, generator = {"discriminator"}, {"denoiser", "conditioner"}
    assert steps.with_gradients == [discriminator, discriminator, generator] * 2
    assert all(moved <= trained for moved, trained in zip(steps.moved, steps.with_gradients, strict=True))
    assert all({"discriminator", "denoiser"} & moved for moved in steps.moved)
    assert [set(terms) for terms in steps.terms] == [*[{"d_real", "d_fake"}] * 2, {"task", "kd", "adversarial"}] * 2
    assert saved["steps"] == {"generator": 2, "discriminator": 4}
    assert saved["images_seen"] == 2 * pretrain_run.BATCH
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"denoiser", "conditioner", "discriminator"}
    assert {name.split(".")[0] for name in saved["ema"]["weights"]} == {"denoiser", "conditioner"}


def test_losses_are_the_golden_ones(images: Path, run: Path, tmp_path: Path) -> None:
    steps = StepLosses()
    train(step_distill(run), images, tmp_path, 6, callbacks=[steps], val_check_interval=None)
    steps.check("step_distill")


def test_times_are_the_samplers_and_the_next_ones(images: Path, run: Path, tmp_path: Path) -> None:
    steps = Steps()
    train(step_distill(run), images, tmp_path, 8, callbacks=[steps], val_check_interval=None)
    seen = [{round(t, 6) for t in times.tolist()} for times in steps.times]
    assert set.union(*seen[0::2]) == {0.0, 0.25, 0.5, 0.75}  # of the discriminator
    assert set.union(*seen[1::2]) == {0.25, 0.5, 0.75, 1.0}


def test_the_terms_are_those_of_the_method(images: Path, run: Path, tmp_path: Path) -> None:
    module, batch = ready(images, run, tmp_path, adversarial_weight=0.5)
    path, condition = module.training_sample(batch)
    (task, kd, adversarial) = module.loss_terms(batch, path, condition).terms
    d_real, d_fake = module.discriminator_terms(batch, path, condition).terms
    assert (adversarial.role, adversarial.weight, task.weight, kd.weight) == ("adversarial", 0.5, 1.0, 1.0)

    t_B = torch.tensor([TIMES[TIMES.index(t) + 1] for t in path.t_B.tolist()])
    t_B111 = t_B[:, None, None, None]
    latent = module.autoencoder.to_final(module.autoencoder.encode(batch.image_BCHW / 127.5 - 1).mean_BCHW)
    nothing_B = rng.uniform(0, rng.Stream.CONDITION_DROPOUT, batch.position_B) < 0.5

    def logits(data_BCHW: Tensor, stream: rng.Stream) -> list[Tensor]:
        noise = rng.normal(0, stream, batch.position_B, module.latent_shape)
        x_BCHW = (1 - t_B111) * data_BCHW + t_B111 * noise
        plain = RunTeacher(str(run))  # unguided: features are of the conditional velocity
        plain.ready(tmp_path, ("cat", "dog"))
        output = plain(x_BCHW, t_B, plain.ask(batch.condition, nothing_B), ("down.0", "up.1"))
        summary = plain._conditioner(batch.condition).tokens_BSD.mean(1) * ~nothing_B[:, None]
        with torch.no_grad():
            found: list[Tensor] = module.discriminator(output.features, t_B, summary)
        return found

    with torch.no_grad():
        velocity = module.denoiser(path.x_BCHW, path.t_B, module.conditioner(condition)).velocity_BCHW
    guess = path.x_BCHW - path.t_B[:, None, None, None] * velocity
    real, fake = logits(latent, rng.Stream.RENOISE_REAL), logits(guess, rng.Stream.RENOISE_FAKE)

    def minus_log(heads: list[Tensor], sign: int) -> Tensor:
        return torch.stack([-torch.log(torch.sigmoid(sign * head)).mean(1) for head in heads]).mean(0)

    torch.testing.assert_close(d_real.value_B, minus_log(real, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_fake.value_B, minus_log(fake, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adversarial.value_B, minus_log(fake, 1), rtol=1e-4, atol=1e-5)


def test_a_step_of_each_network_does_what_it_is_for(images: Path, run: Path, tmp_path: Path) -> None:
    module, batch = ready(images, run, tmp_path, task_weight=0.0, output_weight=0.0)

    def sample() -> tuple[Any, Any]:
        return module.training_sample(batch)

    def pays(parameters: Any, terms: Any) -> tuple[float, float]:
        """What is paid before a small step of gradient descent, and after it."""
        optimizer = torch.optim.SGD(parameters, lr=1e-2)
        before = sum(term.value_B.mean() for term in terms().terms)
        before.backward()
        optimizer.step()
        return float(before), float(sum(term.value_B.mean() for term in terms().terms))

    before, after = pays(module.discriminator.parameters(), lambda: module.discriminator_terms(batch, *sample()))
    assert after < before  # l(real) - l(fake) rises
    before, after = pays(module.denoiser.parameters(), lambda: module.loss_terms(batch, *sample()))
    assert after < before  # l(fake) rises


def test_levels_may_be_drawn_and_more_may_be_asked_of_the_discriminator(
    images: Path, run: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"renoise": LogitNormal(1.0), "misaligned": True, "penalty_weight": 0.1}
    module, batch = ready(images, run, tmp_path, adversarial=AdversarialLoss("hinge"), **options)
    terms = module.discriminator_terms(batch, *module.training_sample(batch))
    assert [term.name for term in terms.terms] == ["d_real", "d_fake", "d_misaligned", "d_penalty"]
    assert [term.weight for term in terms.terms] == [1, 1, 1, 0.1]
    expected = LogitNormal(1.0).sample(rng.uniform(0, rng.Stream.RENOISE_TIME, batch.position_B))
    assert torch.equal(terms.t_B, expected)
    assert not torch.equal(terms.terms[0].value_B, terms.terms[2].value_B)
    terms.terms[3].value_B.mean().backward()  # type: ignore[no-untyped-call]
    assert module.discriminator.heads[0].reduce.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]


def test_conditions_of_neighbours_that_ask_for_the_same_or_for_nothing_are_no_fakes(
    images: Path, run: Path, tmp_path: Path
) -> None:
    module, batch = ready(images, run, tmp_path, misaligned=True)
    assert isinstance(batch.condition, Tensor)
    asked_B = torch.tensor([0, 0, 1, 2] + [2] * (len(batch.position_B) - 4))
    batch = batch._replace(condition=asked_B)
    path, left_B = module.training_sample(batch)
    nothing_B = module.conditioner.asks_nothing(left_B)
    nothing_B[2] = True
    left_B = torch.where(nothing_B, module.conditioner.nothing(left_B), left_B)  # type: ignore[arg-type]
    terms = {term.name: term.value_B for term in module.discriminator_terms(batch, path, left_B).terms}
    other_B = (asked_B != asked_B.roll(1)) & ~nothing_B
    assert 0 < other_B.sum() < len(other_B)
    assert torch.equal(terms["d_misaligned"] != 0, other_B)
    module.misaligned = False
    alone = {term.name: term.value_B for term in module.discriminator_terms(batch, path, left_B).terms}
    assert torch.equal(alone["d_real"], terms["d_real"])
    module.misaligned = True
    one = batch._replace(**{name: value[:1] for name, value in batch._asdict().items() if isinstance(value, Tensor)})
    with pytest.raises(ValueError, match="a process takes one image at once"):
        module.discriminator_terms(one, path, left_B)


@pytest.mark.parametrize("output_weight", [0.0, 1.0])
def test_a_batch_is_one_question_to_the_teacher_in_either_turn(
    images: Path, run: Path, tmp_path: Path, output_weight: float
) -> None:
    module, batch = ready(images, run, tmp_path, misaligned=True, output_weight=output_weight)
    assert isinstance(module.teacher, RunTeacher)
    done: list[str] = []
    for name, part in (("told", module.teacher._conditioner), ("answered", module.teacher._denoiser)):
        part.register_forward_hook(lambda *_, name=name: done.append(name))
    module.discriminator_terms(batch, *module.training_sample(batch))
    assert done == ["told"]
    module.loss_terms(batch, *module.training_sample(batch))
    assert done[1:] == ["told", *["answered"] * (output_weight > 0)]


@pytest.mark.parametrize("steps", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_stopping_and_resuming_changes_nothing(images: Path, run: Path, tmp_path: Path, steps: int) -> None:
    straight = train(step_distill(run), images, tmp_path / "straight", 8, callbacks=[TimestepAwareScaling()])
    train(step_distill(run), images, tmp_path / "parts", steps, callbacks=[TimestepAwareScaling()])
    resumed = train(step_distill(run), images, tmp_path / "parts", 8, resume=True, callbacks=[TimestepAwareScaling()])
    assert len(straight["optimizer_states"]) == len(straight["lr_schedulers"]) == 2
    assert tiny_run.differing(resumed, straight) == []


def test_accumulated_batches_are_one_larger_batch(images: Path, run: Path, tmp_path: Path) -> None:
    halves = pretrain_run.image_data(images, batch_size=pretrain_run.BATCH // 2)
    whole = train(step_distill(run), images, tmp_path / "whole", 4, val_check_interval=None)
    parts = train(
        step_distill(run, accumulate=2), images, tmp_path / "parts", 4, data=halves, val_check_interval=None
    )  # fmt: skip
    assert (parts["steps"], parts["images_seen"]) == (whole["steps"], whole["images_seen"])
    for name, weight in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], weight, atol=1e-5, rtol=1e-4)


def test_gradients_are_clipped(images: Path, run: Path, tmp_path: Path) -> None:
    norms: dict[str, float] = {}

    class Norms(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            norms.update({name: float(value) for name, value in trainer.callback_metrics.items() if "norm" in name})

    saved = train(step_distill(run, gradient_clip=1e-6, warmup_images=0), images, tmp_path, 2, callbacks=[Norms()],
                  val_check_interval=None)  # fmt: skip
    assert norms.keys() == {"train/gradient_norm_generator", "train/gradient_norm_discriminator"}
    assert min(norms.values()) > 1e-3  # before
    moments = [state["exp_avg"] for state in saved["optimizer_states"][0]["state"].values()]
    assert torch.stack([moment.norm() for moment in moments]).norm() <= 1e-6


def test_which_network_went_astray_is_said(images: Path, run: Path, tmp_path: Path) -> None:
    module = step_distill(run, warmup_images=0)
    with torch.no_grad():
        next(module.discriminator.heads[0].parameters())[:] = torch.nan
    with pytest.raises(FloatingPointError, match="loss term 'd_real' is nan at step"):
        train(module, images, tmp_path, 3)
    assert not (tmp_path / LAST).exists()


def test_losses_are_logged_by_network_and_time(images: Path, run: Path, tmp_path: Path) -> None:
    logger = RunLogger(str(tmp_path), name="", version="", default_hp_metric=False)
    train(step_distill(run), images, tmp_path, 8, callbacks=[TimestepAwareScaling(), LossesByTime()], logger=logger,
          log_every_n_steps=2)  # fmt: skip
    scalars = distilled_run.scalars(tmp_path)
    assert {"train/d_real", "train/d_fake", "train/adversarial", "train/lambda", "val/loss", "val/kd"} <= scalars.keys()
    times = {name: {tag.split("/")[-1] for tag in scalars if tag.startswith(f"train_by_t/{name}/")} for name in
             ("d_real", "d_fake", "adversarial")}  # fmt: skip
    assert times["d_real"] == times["d_fake"] == {"0.0", "0.2", "0.5", "0.7"}
    assert times["adversarial"] == {"0.2", "0.5", "0.7", "0.9"}


def test_it_begins_with_the_averaged_weights_of_a_run(images: Path, run: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(run, tmp_path / "source"))
    given = torch.load(source / LAST, weights_only=True)["ema"]["weights"]

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for name, weight in given.items():
                assert torch.equal(pl_module.get_parameter(name), weight), name

    def module(init_from: str | None = str(source)) -> StepDistill:
        parts = open_run(str(run)).build("a student", denoiser=Denoiser, conditioner=Conditioner)
        teacher = RunTeacher(str(run))
        inputs = [HeadInput("up.1", 32)]
        return StepDistill(
            parts.denoiser,
            parts.conditioner,
            step_distill(run).autoencoder,
            teacher,
            Discriminator(inputs, 16, width=8),
            image_size=pretrain_run.SIDE,
            init_from=init_from,
        )

    train(module(), images, tmp_path / "run", 2, callbacks=[Start(), RunManifest()], every_n_steps=1)
    (start,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["starts"]
    assert start["init_from"]["checkpoint"] == str(source / LAST)
    shutil.rmtree(source)
    resumed = train(module(None), images, tmp_path / "run", 4, resume=True)
    assert resumed["steps"] == {"generator": 2, "discriminator": 2}
    with pytest.raises(ValueError, match="no run there"):
        train(module(), images, tmp_path / "anew", 1)


def test_weights_of_another_network_are_refused(images: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"init_from .*: its networks are not those of this run"):
        train(step_distill(run, init_from=str(run)), images, tmp_path, 1)
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator": Discriminator([HeadInput("up.9", 32)], 16)}, r"unknown features \['up\.9'\]"),
        ({"discriminator": Discriminator([HeadInput("up.1", 64)], 16)}, "set its channels to 32"),
        ({"discriminator": Discriminator([HeadInput("up.1", 32)], 17)}, "vectors of 16; set it to that"),
        ({"adversarial_weight": 0.0}, r"adversarial_weight is 0\.0"),
        ({"penalty_weight": -1.0}, r"penalty_weight -1\.0"),
        ({"accumulate": 0}, "accumulate 0"),
        ({"discriminator_steps": 0}, "discriminator_steps is 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_once(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_distill(run, **options)


def test_it_draws_in_its_few_steps_without_teacher_and_discriminator(images: Path, run: Path, tmp_path: Path) -> None:
    teacher = RunTeacher(str(run))
    module = step_distill(run, teacher=teacher, sampler=Renoising(2))
    assert isinstance(module, Pretrain)
    assert module.timesteps.times == (1.0, 0.5, 0.0)
    (images_BCHW, *_) = tiny_run.trainer_for(tmp_path, 1).predict(module, datamodule=pretrain_run.image_data(images))  # type: ignore[misc]
    assert images_BCHW.dtype == torch.uint8
    assert not teacher._has_weights
