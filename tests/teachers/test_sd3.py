import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.teachers.sd3 import SD3Teacher
from tests.teachers.tiny import CLASSES, NAMES, answer, asked, conditioner, mmdit, observation, pipeline, teacher
from tests.tiny_kl import kl

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small pipeline; to be read only."""
    return pipeline(tmp_path_factory.mktemp("pipeline"))


def velocity(x_BCHW: Tensor, t_B: Tensor, label_B: Tensor) -> Tensor:
    """The pipeline's transformer, called by hand."""
    with torch.no_grad():
        told: Conditioning = conditioner()(label_B)
        answer: Tensor = mmdit()(x_BCHW, t_B, told).velocity_BCHW
    return answer


def rows_seen(made: SD3Teacher) -> list[int]:
    """Grows by the rows of each forward of the network."""
    rows: list[int] = []
    made._denoiser.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    return rows


def test_the_velocity_is_guided_and_of_samples_without_a_condition_it_is_not(folder: Path) -> None:
    x_BCHW, t_B, label_B, nothing_B = asked()
    conditional, unconditional = velocity(x_BCHW, t_B, label_B), velocity(x_BCHW, t_B, torch.full((4,), len(CLASSES)))
    made = teacher(folder, scale=4.5)
    rows = rows_seen(made)
    output = answer(made, x_BCHW, t_B, label_B, nothing_B)
    expected = unconditional + 4.5 * (conditional - unconditional)
    torch.testing.assert_close(output.velocity_BCHW[:3], expected[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.velocity_BCHW[3:], unconditional[3:], atol=1e-4, rtol=1e-4)
    assert (expected - unconditional)[3].abs().max() > 0.1
    assert output.velocity_BCHW.dtype == torch.float32
    assert rows == [8]


def test_guidance_of_one_is_the_conditional_velocity_from_one_forward_of_the_batch(folder: Path) -> None:
    x_BCHW, t_B, label_B, nothing_B = asked()
    made = teacher(folder, scale=1)
    rows = rows_seen(made)
    output = answer(made, x_BCHW, t_B, label_B, nothing_B)
    assert rows == [4]
    expected = velocity(x_BCHW, t_B, torch.where(nothing_B, len(CLASSES), label_B))
    torch.testing.assert_close(output.velocity_BCHW, expected)


def test_guidance_acts_on_the_samples_whose_time_it_acts_at(folder: Path) -> None:
    x_BCHW, _, label_B, nothing_B = asked()
    t_B = torch.tensor([0.1, 0.5, 0.9, 0.5])
    output = answer(
        teacher(folder, guidance=Guidance(3.0, interval=(0.4, 0.6), channels=2)), x_BCHW, t_B, label_B, nothing_B
    )
    conditional, unconditional = velocity(x_BCHW, t_B, label_B), velocity(x_BCHW, t_B, torch.full((4,), len(CLASSES)))
    expected = conditional.clone()
    expected[1, :2] = (unconditional + 3 * (conditional - unconditional))[1, :2]
    expected[3] = unconditional[3]
    torch.testing.assert_close(output.velocity_BCHW, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_features_are_those_on_the_way_to_the_conditional_velocity(folder: Path, scale: float) -> None:
    x_BCHW, t_B, label_B, nothing_B = asked()
    features = answer(teacher(folder, scale), x_BCHW, t_B, label_B, nothing_B, NAMES).features
    with torch.no_grad():
        told = conditioner()(torch.where(nothing_B, len(CLASSES), label_B))
        expected = mmdit()(x_BCHW, t_B, told, NAMES).features
    for feature, wanted in zip(features, expected, strict=True):
        assert feature.shape == (4, 16, 3, 5)
        torch.testing.assert_close(feature, wanted, atol=1e-4, rtol=1e-4)


def test_nothing_is_known_of_the_weights_but_their_shapes_until_it_is_ready(folder: Path, tmp_path: Path) -> None:
    bare = pipeline(tmp_path)
    (bare / "transformer" / WEIGHTS).unlink()
    made = teacher(bare, ready=False)
    assert made.in_channels == 4
    assert made.feature_channels == {"block.0": 16, "block.1": 16, "block.2": 16}
    assert set(made.feature_strides.values()) == {2}
    assert made.takes == "label"
    made.check_features(NAMES)
    with pytest.raises(ValueError, match=r"SD3Teacher has no weights yet; call ready\(\) first"):
        answer(made, *asked())
    with pytest.raises(ValueError, match=r"unknown features \['block.3'\]"):
        made.check_features(("block.3",))
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safetensors in .*transformer"):
        made.ready(tmp_path, CLASSES)
    made = teacher(folder, ready=False)
    assert made.ready(tmp_path, CLASSES)[0].startswith(f"teacher: {folder / 'transformer'}, 0.00 B parameters")
    assert made.ready(tmp_path, CLASSES) == []


def test_making_one_draws_nothing_from_the_students_generator(folder: Path) -> None:
    told = conditioner()
    torch.manual_seed(5)
    alone = torch.randn(3)
    torch.manual_seed(5)
    SD3Teacher(told, str(folder)).ready(folder, CLASSES)
    assert torch.equal(torch.randn(3), alone)


def test_asking_never_waits_for_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A meta tensor has no value: whatever would read one, and so make a GPU wait, raises. It has no autocast either.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    made = teacher(folder, ready=False, guidance=Guidance(2.0, (0.2, 0.9), channels=3))
    made.place(torch.device("meta"))
    made._has_weights = True
    assert answer(made, *(part.to("meta") for part in asked()), NAMES).velocity_BCHW.is_meta


class Student(L.LightningModule):
    """A linear layer that learns a teacher's velocity."""

    def __init__(self, teacher: SD3Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.layer = nn.Conv2d(4, 4, 1)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x_BCHW, t_B, label_B, nothing_B = batch
        taught = answer(self.teacher, x_BCHW, t_B, label_B, nothing_B, NAMES)
        return (self.layer(x_BCHW) * taught.velocity_BCHW).square().mean() * taught.features[0].mean()

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_its_holder_has_nothing_of_it(folder: Path, tmp_path: Path) -> None:
    made = teacher(folder)
    before = {name: weight.clone() for name, weight in made._denoiser.state_dict().items()}
    student = Student(made)
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=1,
        val_check_interval=1,
        limit_val_batches=1,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    batches = DataLoader([asked(), asked()], batch_size=None)
    trainer.fit(student, batches, batches)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    own = {"layer.weight", "layer.bias"}
    assert set(student.state_dict()) == {name for name, _ in student.named_parameters()} == own
    assert set(torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]) == own
    assert len(student.optimizers().param_groups[0]["params"]) == 2  # type: ignore[union-attr]
    assert copy.deepcopy(student).teacher is made
    student.train()
    assert not any(part.training for held in (made._denoiser, made._conditioner) for part in held.modules())
    for held in (made._denoiser, made._conditioner):
        assert not any(p.requires_grad or p.grad is not None for p in held.parameters())
    after = made._denoiser.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_answers_have_no_gradient_and_serve_those_that_have(folder: Path) -> None:
    made, (x_BCHW, t_B, label_B, nothing_B) = teacher(folder), asked()
    with torch.inference_mode():  # a validation before the first step
        answer(made, x_BCHW, t_B, label_B, nothing_B)
    x_BCHW.requires_grad_()
    taught = answer(made, x_BCHW, t_B, label_B, nothing_B, NAMES)
    for said in (taught.velocity_BCHW, *taught.features):
        assert not said.requires_grad
        assert not said.is_inference()
    (x_BCHW * taught.velocity_BCHW).sum().backward()
    assert torch.equal(x_BCHW.grad, taught.velocity_BCHW)


def test_bfloat16_is_its_own_whatever_the_student_runs_in(folder: Path) -> None:
    rounded, exact = teacher(folder, dtype="bfloat16"), teacher(folder)
    assert {p.dtype for p in rounded._denoiser.parameters()} == {torch.bfloat16}
    plain = answer(rounded, *asked(), NAMES)
    assert plain.velocity_BCHW.dtype == torch.float32
    assert {feature.dtype for feature in plain.features} == {torch.bfloat16}
    wanted = answer(exact, *asked()).velocity_BCHW
    assert 0 < (plain.velocity_BCHW - wanted).norm() / wanted.norm() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(answer(rounded, *asked()).velocity_BCHW, plain.velocity_BCHW)
        assert torch.equal(answer(exact, *asked()).velocity_BCHW, wanted)


def test_weights_in_several_files_are_the_same_weights(folder: Path, tmp_path: Path) -> None:
    parts = pipeline(tmp_path, max_shard_size="20KB")
    files = sorted(file.name for file in (parts / "transformer").iterdir())
    assert len(files) > 3
    assert WEIGHTS not in files
    whole, sharded = teacher(folder), teacher(parts)
    # Not to the bit: products of mapped weights are taken otherwise where a file aligns them otherwise.
    torch.testing.assert_close(
        answer(sharded, *asked()).velocity_BCHW, answer(whole, *asked()).velocity_BCHW, atol=1e-4, rtol=1e-4
    )
    assert whole.identity() == sharded.identity()


def test_identities_tell_what_answers_depend_on(folder: Path, tmp_path: Path) -> None:
    other = pipeline(tmp_path / "other", seed=1)
    first = teacher(folder, ready=False).identity()
    assert first == teacher(folder).identity()
    assert json.loads(json.dumps(first)) == first
    for made in (
        teacher(other, ready=False),
        teacher(folder, ready=False, scale=1),
        teacher(folder, ready=False, dtype="bfloat16"),
    ):
        assert made.identity() != first


@pytest.mark.slow
def test_compiled_blocks_give_the_same_answers(folder: Path) -> None:
    expected = answer(teacher(folder), *asked(), NAMES)
    made = teacher(folder, compile=True)
    for _ in range(2):
        output = answer(made, *asked(), NAMES)
        torch.testing.assert_close(output.velocity_BCHW, expected.velocity_BCHW, atol=1e-4, rtol=1e-4)
        for feature, wanted in zip(output.features, expected.features, strict=True):
            torch.testing.assert_close(feature, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("sharded",), ("offloaded",), ("sharded", "--compile")], ids=lambda words: "-".join(words)
)
def test_divided_among_two_processes_it_answers_as_one(folder: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.teachers.tiny", str(folder), str(tmp_path), *words]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = teacher(folder)
    expected = answer(made, *asked(), NAMES)
    for rank in range(2):
        said = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(said["velocity"], expected.velocity_BCHW[rank::2], atol=1e-4, rtol=1e-4)
        for feature, wanted in zip(said["features"], expected.features, strict=True):
            torch.testing.assert_close(feature, wanted[rank::2], atol=1e-4, rtol=1e-4)
        for found, wanted in zip((said["seen"], said["gradient"]), observation(made, *asked()), strict=True):
            torch.testing.assert_close(found, wanted[rank::2], atol=1e-3, rtol=1e-3)
        assert said["same"]
        assert said["share"] == pytest.approx(0.5, abs=0.05)
        assert said["identity"] == made.identity()["weights"]


def test_an_autoencoder_of_other_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    made = teacher(folder, ready=False)
    for name, config in (("same", {}), ("flux", {"scaling_factor": 0.3611, "shift_factor": 0.1159})):
        kl(**({"scaling_factor": 1.5305, "shift_factor": 0.0609} | config)).save_pretrained(tmp_path / name)
    same, flux = (KL(str(tmp_path / name)) for name in ("same", "flux"))
    for autoencoder in (same, flux):
        autoencoder.ready(tmp_path, ())
    made.check_autoencoder(same.identity())
    with pytest.raises(
        ValueError, match=r"shift is 0\.0609 of the teacher's, 0\.1159 of the student's; scale is 1\.53"
    ):
        made.check_autoencoder(flux.identity())
    with pytest.raises(ValueError, match=r"shift is 0\.0609 of the teacher's, None of the student's"):
        made.check_autoencoder(PatchPCA(patch=4, channels=4).identity())


def test_what_cannot_serve_is_refused_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes tokens of width 12, its conditioner gives 8"):
        SD3Teacher(ClassTokens(3, context_dim=8), str(folder))
    with pytest.raises(ValueError, match="guided channels are 5"):
        teacher(folder, guidance=Guidance(2.0, channels=5))
    with pytest.raises(ValueError, match="placement is sharded, which torch does for a group of processes"):
        teacher(folder, placement="sharded").place(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"no config\.json of a transformer in .*vae2"):
        teacher(folder, subfolder="vae2")
    with pytest.raises(ValueError, match=r"holds no teacher: the configuration is of a AutoencoderKL"):
        teacher(folder, subfolder="vae")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (tmp_path / "odd").mkdir()
    for changed in ({"num_layers": "3"}, {"patch_size": 0}, {"joint_attention_dim": 10**18}, {"in_channels": -1}):
        (tmp_path / "odd" / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=r"odd holds no teacher: "):
            SD3Teacher(conditioner(), str(tmp_path), subfolder="odd", autoencoder_subfolder=str(folder / "vae"))
    with pytest.raises(ValueError, match=r"no config\.json of an autoencoder"):
        teacher(folder, autoencoder_subfolder="vae2")
    with pytest.raises(ValueError, match="give the folder of a downloaded network"):
        teacher(tmp_path / "missing" / "folder")


def test_a_network_needs_the_pooled_vector_that_its_conditioner_has_to_give(folder: Path) -> None:
    made = SD3Teacher(ClassTokens(3, tokens=5, context_dim=12), str(folder), dtype="float32")
    made.ready(folder, CLASSES)
    with pytest.raises(ValueError, match="needs a pooled vector"):
        answer(made, *asked())


def test_a_process_alone_may_offload_in_a_group_of_its_own(folder: Path, tmp_path: Path) -> None:
    expected = answer(teacher(folder), *asked(), NAMES)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        made = teacher(folder, placement="offloaded")
        made.place(torch.device("cpu"))
        output = answer(made, *asked(), NAMES)
        observed = observation(made, *asked())
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(output.velocity_BCHW, expected.velocity_BCHW)
    assert all(torch.equal(a, b) for a, b in zip(output.features, expected.features, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(observed, observation(teacher(folder), *asked()), strict=True))


@pytest.mark.parametrize("kind", ["missing", "foreign", "misshapen", "truncated", "pickled"])
def test_weights_that_are_not_its_own_are_refused(tmp_path: Path, kind: str) -> None:
    made = teacher(pipeline(tmp_path), ready=False)
    file = tmp_path / "transformer" / WEIGHTS
    changes: dict[str, Any] = {
        "missing": {"proj_out.bias": None},
        "foreign": {"proj_out.other": torch.zeros(1)},
        "misshapen": {"proj_out.bias": torch.zeros(3)},
    }
    if kind in changes:
        tensors = load_file(file) | changes[kind]
        save_file({name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}, file)
        said = rf"{kind}: proj_out\..*; download it again"
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        said = "is damaged"
    else:
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
        said = r"pickled \.bin weights are not read"
    with pytest.raises(ValueError, match=said):
        made.ready(tmp_path, CLASSES)


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    made = teacher(pipeline(tmp_path, max_shard_size="20KB"), ready=False)
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    (tmp_path / "transformer" / parts[1]).unlink()
    with pytest.raises(ValueError, match=f"no {parts[1]} in"):
        made.ready(tmp_path, CLASSES)
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        with pytest.raises(ValueError, match="is no index of weights"):
            made.ready(tmp_path, CLASSES)
