import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from callbacks.checkpoint import LastCheckpoint
from callbacks.ema import EMA, ema_weights
from snapgen_pl.checkpoints import LAST
from snapgen_pl.fsdp import reshard, shard
from tests import tiny_run
from tests.tiny_run import Stream, Tiny


def averaged(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Recorder(L.Callback):
    """Keeps the weights after each optimizer step, and what validation looks at."""

    def __init__(self) -> None:
        self.raw: list[dict[str, Tensor]] = []
        self.images: list[int] = []
        self.validated: list[dict[str, Tensor]] = []
        self.step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.raw.append(averaged(pl_module))
            self.images.append(pl_module.images_seen)  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated.append(averaged(pl_module))

    on_test_epoch_end = on_validation_epoch_end


def reference(
    start: dict[str, Tensor], raw: list[dict[str, Tensor]], images: list[int], half_life: float, ramp_up: float
) -> list[dict[str, Tensor]]:
    """The average written out by hand in fp64: a <- d a + (1 - d) w."""
    average, seen, history = {name: weight.double() for name, weight in start.items()}, 0, []
    for weights, total in zip(raw, images, strict=True):
        d = 2.0 ** -((total - seen) / min(half_life, ramp_up * total))
        average = {name: d * a + (1 - d) * weights[name].double() for name, a in average.items()}
        seen = total
        history.append(average)
    return history


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_average_is_that_of_a_reference_written_by_hand(tmp_path: Path, accumulate: int) -> None:
    torch.manual_seed(0)
    module, recorder, ema = Tiny(), Recorder(), EMA(half_life_images=40, ramp_up=0.5)
    start = averaged(module)
    trainer = tiny_run.trainer_for(
        tmp_path, 9, accumulate=accumulate, callbacks=[recorder, ema], limit_val_batches=0, ours=False
    )
    trainer.fit(module, Stream(6))
    assert recorder.images == [6 * accumulate * step for step in range(1, 10)]
    assert trainer.callback_metrics["train/ema_half_life"] == min(40, 0.5 * recorder.images[-1])
    expected = reference(start, recorder.raw, recorder.images, 40, 0.5)[-1]
    with ema.applied():
        for name, weight in averaged(module).items():
            torch.testing.assert_close(weight, expected[name].float(), rtol=1e-5, atol=1e-6)
    assert same(averaged(module), recorder.raw[-1])


def test_the_half_life_is_in_images_and_ramps_up() -> None:
    ema = EMA(half_life_images=1000, ramp_up=0.1)
    assert ema.decay(1000, total=1_000_000) == pytest.approx(0.5)
    assert ema.decay(10, total=1_000_000) ** 100 == pytest.approx(0.5)
    assert ema.decay(64, total=64) == pytest.approx(2**-10), "the first step all but forgets the initial weights"
    assert ema.decay(10, total=5000) == pytest.approx(math.exp2(-10 / 500)), "bounded by a tenth of the images seen"


def test_a_batch_that_trains_another_network_alone_leaves_the_average() -> None:
    class Alternating(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            before = self.images_seen
            result = super().training_step(batch, batch_idx)
            if batch_idx % 2:
                self.images_seen = before
            return result

    torch.manual_seed(0)
    module, recorder, ema = Alternating(), Recorder(), EMA(half_life_images=40)
    start = averaged(module)
    trainer = tiny_run.trainer_for(Path(), 6, callbacks=[recorder, ema], limit_val_batches=0, ours=False)
    trainer.fit(module, Stream(6))
    expected = reference(start, recorder.raw[::2], recorder.images[::2], 40, 0.05)[-1]
    with ema.applied():
        for name, weight in averaged(module).items():
            torch.testing.assert_close(weight, expected[name].float(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[L.Trainer, Tiny, EMA, Recorder]:
    torch.manual_seed(0)
    module, recorder = Tiny(), Recorder()
    trainer = tiny_run.trainer_for(tmp_path, 6, every_n_steps=3, callbacks=[recorder])
    trainer.fit(module, Stream(6), Stream(6))
    ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
    return trainer, module, ema, recorder


def test_applying_is_reentrant_and_keeps_the_storage(trained: tuple[L.Trainer, Tiny, EMA, Recorder]) -> None:
    trainer, module, ema, _ = trained
    raw, storage = averaged(module), [parameter.data_ptr() for parameter in module.parameters()]
    with ema.applied():
        average = averaged(module)
        with ema_weights(trainer):
            assert same(averaged(module), average)
        assert same(averaged(module), average), "leaving the inner one leaves the average in place"
        assert [parameter.data_ptr() for parameter in module.parameters()] == storage
    assert not same(average, raw)
    assert same(averaged(module), raw)
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        raise RuntimeError("inside")
    assert same(averaged(module), raw)


def test_validation_sees_the_average_and_training_goes_on_from_the_raw_weights(
    trained: tuple[L.Trainer, Tiny, EMA, Recorder],
) -> None:
    _, module, ema, recorder = trained
    with ema.applied():
        average = averaged(module)
    assert same(recorder.validated[-1], average)
    assert same(averaged(module), recorder.raw[-1])


def test_a_checkpoint_written_while_applied_holds_raw_weights_and_the_average(
    trained: tuple[L.Trainer, Tiny, EMA, Recorder], tmp_path: Path
) -> None:
    trainer, module, ema, _ = trained
    raw = averaged(module)
    with ema.applied():
        average = averaged(module)
        trainer.save_checkpoint(tmp_path / "applied.ckpt")
    checkpoint = tiny_run.load(tmp_path / "applied.ckpt")
    assert same(checkpoint["state_dict"], raw)
    assert same(checkpoint["ema"]["weights"], average)


def test_validating_and_testing_a_checkpoint_without_training_uses_its_average(
    trained: tuple[L.Trainer, Tiny, EMA, Recorder], tmp_path: Path
) -> None:
    class Tested(Tiny):
        test_step = Tiny.validation_step

    average = tiny_run.load(tmp_path / LAST)["ema"]["weights"]
    module, recorder = Tested(), Recorder()
    trainer = tiny_run.trainer_for(tmp_path, 6, callbacks=[recorder], limit_test_batches=1)
    trainer.validate(module, Stream(6), ckpt_path=tmp_path / LAST)
    trainer.test(module, Stream(6), ckpt_path=tmp_path / LAST)
    assert len(recorder.validated) == 2
    assert all(same(weights, average) for weights in recorder.validated)


def test_a_failure_during_validation_leaves_the_raw_weights_in_the_module(tmp_path: Path) -> None:
    class Failing(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("broken sampler")

    module, recorder = Failing(), Recorder()
    trainer = tiny_run.trainer_for(tmp_path, 6, callbacks=[recorder])
    with pytest.raises(RuntimeError, match="broken sampler"):
        trainer.fit(module, Stream(6), Stream(6))
    assert same(averaged(module), recorder.raw[-1])


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    tiny_run.trainer_for(tmp_path, 2, callbacks=[LastCheckpoint()], ours=False).fit(Tiny(), Stream(6), Stream(6))
    with pytest.raises(ValueError, match=r"written without callbacks\.EMA"):
        tiny_run.trainer_for(tmp_path, 4).fit(Tiny(), Stream(6), Stream(6), ckpt_path=tmp_path / LAST)


def test_an_average_of_other_parameters_is_refused(
    trained: tuple[L.Trainer, Tiny, EMA, Recorder], tmp_path: Path
) -> None:
    module = Tiny()
    module.denoiser.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"of other parameters: 2 differ, \['denoiser\.4\.bias'"):
        EMA().on_load_checkpoint(trained[0], module, tiny_run.load(tmp_path / LAST))


def test_a_module_without_the_named_children_is_refused() -> None:
    with pytest.raises(ValueError, match="no child modules \\['generator'\\]"):
        EMA(modules=("denoiser", "generator")).setup(L.Trainer(logger=False), Tiny(), "fit")


def test_a_sharded_module_gathers_its_own_weights_again_after_the_average_was_seen() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module, ema, trainer = Tiny(dropout=0), EMA(), L.Trainer(logger=False)
        shard(module.denoiser, init_device_mesh("cpu", (1,)))
        ema.on_fit_start(trainer, module)
        x, average = torch.ones(1, tiny_run.PIXELS), []
        with torch.no_grad():
            average.append(module.denoiser(x))
            reshard(module.denoiser)
            for parameter in module.denoiser.parameters():
                parameter.add_(1.0)
            raw = module.denoiser(x)
            ema.on_validation_start(trainer, module)
            average.append(module.denoiser(x))
            ema.on_validation_end(trainer, module)
        assert torch.equal(*average)
        assert not torch.equal(raw, average[0])
        assert torch.equal(module.denoiser(x), raw)
    finally:
        torch.distributed.destroy_process_group()


def test_shards_are_averaged_swapped_saved_and_loaded(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        torch.manual_seed(0)
        whole, sharded = Tiny(), Tiny()
        sharded.load_state_dict(copy.deepcopy(whole.state_dict()))
        for layer in (*sharded.denoiser, sharded.conditioner):
            for name, parameter in list(layer.named_parameters()):
                setattr(layer, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh)))
        checkpoints = []
        for module in (whole, sharded):
            ema, trainer = EMA(half_life_images=10, ramp_up=1.0), L.Trainer(logger=False)
            ema.on_fit_start(trainer, module)
            for parameter in module.parameters():
                parameter.data.add_(1.0)
            module.images_seen = 10
            ema._watch.new_steps = lambda _: range(1, 2)  # type: ignore[method-assign]
            ema.on_train_batch_end(trainer, module, None, None, 0)
            with ema.applied():
                checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
                ema.on_save_checkpoint(trainer, module, checkpoint)
            assert not any(isinstance(weight, DTensor) for weight in checkpoint["state_dict"].values())
            checkpoints.append(checkpoint)
        assert same(checkpoints[0]["state_dict"], checkpoints[1]["state_dict"])
        assert same(checkpoints[0]["ema"]["weights"], checkpoints[1]["ema"]["weights"])
        again = EMA()
        again.on_load_checkpoint(L.Trainer(logger=False), sharded, checkpoints[0])
        with again.applied():
            weights = {name: p.full_tensor() for name, p in sharded.named_parameters() if isinstance(p, DTensor)}
            assert same({k: v.detach() for k, v in weights.items()}, checkpoints[0]["ema"]["weights"])
    finally:
        torch.distributed.destroy_process_group()
