"""Training from tars: what the data module offers, and whole runs, stopped and resumed."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.conditioning.condition import texts
from snapgen_pl.conditioning.joined_texts import JoinedTexts
from snapgen_pl.data.buckets import Buckets, Size
from snapgen_pl.data.loader import Sample
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.tar_data import TarData
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.pretrain import Pretrain
from tests import bucket_run, tiny_run
from tests.conditioning import tiny_clip
from tests.shards import emoji, served, shape, write_shards

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SIZES, VALIDATION = [7, 5, 6, 6], 6
SIDE, BATCH = 16, 8
BUCKETS = dataclasses.replace(bucket_run.BUCKETS, group=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and validation/."""
    folder = tmp_path_factory.mktemp("tars")
    write_shards(folder / "train", SIZES)
    write_shards(folder / "validation", [VALIDATION], first=sum(SIZES))
    return folder


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As above, of images of three shapes."""
    folder = tmp_path_factory.mktemp("shaped")
    write_shards(folder / "train", SIZES, shaped=True)
    write_shards(folder / "validation", [VALIDATION], first=sum(SIZES), shaped=True)
    return folder


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As above, but the second of the four training shards ends in the middle, and the third is missing."""
    folder = tmp_path_factory.mktemp("harmed")
    _, second, third, _ = write_shards(folder / "train", SIZES)
    content = Path(second).read_bytes()
    Path(second).write_bytes(content[: len(content) // 2])
    Path(third).unlink()
    write_shards(folder / "validation", [VALIDATION], first=sum(SIZES))
    return folder


def data(folder: Path, **options: Any) -> TarData:
    defaults: dict[str, Any] = {"image_size": SIDE, "batch_size": BATCH, "readers": 2, "shuffle": 4, "flip": True}
    return TarData(f"{folder}/train/{{000..003}}.tar", str(folder / "validation"), **(defaults | options))


def captions(first: int, count: int) -> list[str]:
    return [emoji().caption(index) for index in range(first, first + count)]


def test_validation_and_requests_are_of_the_validation_shards(folder: Path) -> None:
    module = data(folder, samples=VALIDATION)
    module.setup("fit")
    batches = list(module.val_dataloader())
    assert [c for batch in batches for c in texts(batch.condition).captions] == captions(sum(SIZES), VALIDATION)
    requests: list[Request] = list(module.predict_dataloader())
    asked = [caption for request in requests for caption in texts(request.condition).captions]
    assert sorted(asked) == sorted(captions(sum(SIZES), VALIDATION))
    assert module.classes == ("image",)


def test_no_more_images_are_kept_than_asked_for(folder: Path) -> None:
    module = data(folder, validation_images=2, references=3)
    module.setup("fit")
    assert (len(module.source.train), len(module.source.validation)) == (3, 2)
    (batch,) = [module.samples_of("train").__getitems__([Sample(0, 0), Sample(2, 2)])]
    assert list(texts(batch.condition).captions) == [emoji().caption(0), emoji().caption(2)]


def test_an_autoencoder_sees_every_training_image_once(folder: Path) -> None:
    module = data(folder)
    module.setup("fit")
    batches = list(module.training_images(10))
    assert [len(batch.position_B) for batch in batches] == [10, 10, 4]
    assert [c for batch in batches for c in texts(batch.condition).captions] == captions(0, sum(SIZES))
    assert [int(p) for batch in batches for p in batch.position_B] == list(range(sum(SIZES)))


def test_the_fingerprint_is_of_names_sizes_and_the_entry_of_captions(folder: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        module = data(root)
        module.setup("fit")
        return module.fingerprint

    moved = tmp_path / "elsewhere"
    write_shards(moved / "train", SIZES)
    write_shards(moved / "validation", [VALIDATION], first=sum(SIZES))
    assert fingerprint(moved) == fingerprint(folder)
    write_shards(moved / "train", {"003.tar": 30})
    assert fingerprint(moved) != fingerprint(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readers": 3, "workers": 2}, r"data\.readers is 3; it does not divide by 1 process\(es\) x 2 worker\(s\)"),
        ({"readers": 5}, r"data\.readers is 5, but there are only 4 shards"),
        ({"caption_key": "text"}, r"hold no image of use: '000000' in .*000\.tar has no \.json beside its image"),
        ({"min_size": 65}, "hold no image of use, all being smaller than min_size, 65"),
    ],
)
def test_settings_that_do_not_fit_the_shards_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(folder, **options).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6}, r"group is 4, but a process takes 6 images at once, .* to a multiple of 6"),
        ({"batch_size": 2}, r"group is 4, but a process's part of a step has 2 images, .* is a multiple of 2"),
        ({"image_size": 32}, r"image_size is 32, data\.buckets\.image_size 16; set them to the same size"),
        ({"patience": 3}, r"patience is 3, but 4 images make a group"),
        ({"patience": 9, "buckets": None}, r"patience is 9, but squares wait for nothing; leave it out"),
    ],
)
def test_buckets_that_do_not_fit_are_refused(shaped: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(shaped, **({"batch_size": 4, "buckets": BUCKETS} | options)).setup("fit")


def test_validation_goes_through_the_buckets_and_what_samples_are_compared_with_are_squares(shaped: Path) -> None:
    module = data(shaped, buckets=BUCKETS, batch_size=4)
    module.setup("fit")
    found = {}
    for batch in module.val_dataloader():
        assert isinstance(batch, ImageBatch)
        found.update(dict.fromkeys(batch.position_B.tolist(), Size(*batch.image_BCHW.shape[2:])))
    own = [shape(index) for index in range(sum(SIZES), sum(SIZES) + VALIDATION)]
    assert [found[index] for index in range(VALIDATION)] == [BUCKETS.sizes[BUCKETS.index(size)] for size in own]
    assert {batch.image_BCHW.shape[2:] for batch in module.training_images(10)} == {(SIDE, SIDE)}


@pytest.mark.parametrize(
    ("option", "value"),
    [("readers", 0), ("shuffle", 0), ("skip_limit", -1), ("validation_images", 0), ("references", 0), ("min_size", 0)],
)
def test_values_out_of_range_are_refused(folder: Path, option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        data(folder, **{option: value})


def test_a_validation_shard_must_not_be_trained_on(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"000\.tar is among the training and the validation shards"):
        TarData(str(folder / "train"), str(folder / "train" / "000.tar"), SIDE).setup("fit")


def test_shards_that_do_not_exist_are_refused_before_training(harmed: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 4 shards do not exist, .*/train/002\.tar for one"):
        data(harmed).setup("fit")
    data(harmed, skip_limit=1).setup("fit")


@pytest.mark.filterwarnings("ignore:skipped")
def test_faults_of_validation_shards_are_held_to_the_limit(folder: Path, harmed: Path) -> None:
    def module(limit: int) -> TarData:
        return TarData(str(folder / "train"), str(harmed / "train" / "001.tar"), SIDE, 4, readers=2, skip_limit=limit)

    with pytest.raises(ValueError, match=r"data\.skip_limit is 1, the last of them: .*001\.tar is no intact tar"):
        module(1).setup("fit")
    module(2).setup("fit")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save_pipeline(folder)
    return folder


def pretrain(encoder: Path) -> Pretrain:
    stages = [
        Stage(32, down=[Block()], up=[Block()] * 2),
        Stage(64, down=[Block(layers=1)], up=[Block(layers=1)] * 2, self_attention=True),
    ]
    unet = UNet(stages, middle_layers=1, in_channels=4, context_dim=tiny_clip.WIDTH, head_dim=32)
    clip = tiny_clip.CLIPText(str(encoder), "text_encoder", "tokenizer", truncate=True)
    conditioner = JoinedTexts({"clip": clip}, [["clip"]], tiny_clip.WIDTH, dropout=0.1)
    return Pretrain(unet, conditioner, PatchPCA(patch=4, channels=4), SIDE, warmup_images=40)


def train(
    shards: Path,
    encoder: Path,
    folder: Path,
    steps: int,
    resume: bool = False,
    workers: int = 0,
    buckets: Buckets | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains (further) and returns the last checkpoint."""
    L.seed_everything(123 if resume else 0, verbose=False)
    trainer = tiny_run.trainer_for(folder, steps, **options)
    module = data(shards, workers=workers, skip_limit=100, buckets=buckets)
    trainer.fit(pretrain(encoder), datamodule=module, ckpt_path=newest(folder) if resume else None)
    return tiny_run.load(folder / LAST)


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_stopping_and_resuming_changes_nothing(
    harmed: Path, encoder: Path, tmp_path: Path, workers: int, accumulate: int
) -> None:
    straight = train(harmed, encoder, tmp_path / "straight", 7, accumulate=accumulate)
    train(harmed, encoder, tmp_path / "parts", 4, workers=workers, accumulate=accumulate)
    resumed = train(harmed, encoder, tmp_path / "parts", 7, resume=True, workers=workers, accumulate=accumulate)
    assert straight["images_seen"] == 7 * BATCH
    (state,) = straight["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert state["position"] == 7 * BATCH
    assert state["skipped"][0] > 5
    assert tiny_run.differing(resumed, straight) == []
    lines = [json.loads(line) for line in (tmp_path / "straight" / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == state["skipped"][0]
    assert {Path(line["shard"]).name for line in lines} == {"001.tar", "002.tar"}


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 2), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_stopping_and_resuming_changes_nothing_with_buckets(
    shaped: Path, encoder: Path, tmp_path: Path, workers: int, accumulate: int
) -> None:
    """Also on other workers; a batch of 8 is two groups, taken in two or in four."""
    options = {"buckets": BUCKETS, "accumulate": accumulate, "limit_val_batches": 1.0}
    straight = train(shaped, encoder, tmp_path / "straight", 7, **options)
    (stopped,) = train(shaped, encoder, tmp_path / "parts", 4, **options)["loops"]["fit_loop"]["state_dict"][
        "combined_loader"
    ]
    assert sum(map(len, stopped["waiting"])) > 0
    resumed = train(shaped, encoder, tmp_path / "parts", 7, resume=True, workers=workers, **options)
    assert straight["images_seen"] == 7 * BATCH
    assert tiny_run.differing(resumed, straight) == []


@contextmanager
def streamed(folder: Path, runs: Path, **options: Any) -> Iterator[str]:
    """A delta that makes the teacher of the emoji's students small, and its data those of a web server."""
    with served(folder) as server:
        init_args = {
            "shards": f"{server.url}/train/{{000..003}}.tar",
            "validation_shards": f"{server.url}/validation/000.tar",
            "image_size": 32,
            "batch_size": 4,
            "readers": 2,
            "workers": 1,
            "shuffle": 4,
            "min_size": 32,
            "skip_limit": 0,
        }
        model = {
            "image_size": 32,
            "denoiser": {"init_args": {"layers": 1, "latent_size": 8}},
            "sampler": {"init_args": {"steps": 2}},
        }
        trainer = {"max_steps": 2, "val_check_interval": 2, "accelerator": "cpu", "enable_progress_bar": False,
                   "callbacks": [{"class_path": "callbacks.sample_grid.SampleGrid"}]}  # fmt: skip
        delta = {"name": "tars", "runs": str(runs), "trainer": trainer, "data": {"init_args": init_args | options},
                 "model": {"init_args": model}}  # fmt: skip
        file = runs / "delta.yaml"
        file.write_text(yaml.safe_dump(delta), encoding="utf-8")
        yield str(file)


@pytest.fixture
def stream(folder: Path, tmp_path: Path) -> Iterator[str]:
    with streamed(folder, tmp_path) as delta:
        yield delta


@pytest.fixture
def bucketed(shaped: Path, tmp_path: Path) -> Iterator[str]:
    buckets = {"image_size": 32, "step": 8, "ratio": 3, "group": 2}
    with streamed(shaped, tmp_path, min_size=8, buckets=buckets, patience=12) as delta:
        yield delta


def fit(*words: str, deltas: Sequence[str] = ("tars",)) -> list[str]:
    files = [EXPERIMENTS / "emoji" / "t2i" / "teacher.yaml", *(EXPERIMENTS / "t2i" / f"{name}.yaml" for name in deltas)]
    return ["fit", *(word for file in [*files, *words[:1]] for word in ("--config", str(file))), *words[1:]]


IN_BUCKETS = ("tars", "tars_buckets")
IN_TWO = ("--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "4")


def test_a_run_in_buckets_streams_from_a_web_server_and_continues(bucketed: str, tmp_path: Path) -> None:
    def state(*words: str) -> dict[str, Any]:
        assert main(fit(bucketed, *IN_TWO, *words, deltas=IN_BUCKETS)) == 0
        saved = tiny_run.load(tmp_path / "tars" / LAST)
        loaded: dict[str, Any] = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        return loaded

    first = state()
    assert (first["position"], first["assembly"]) == (8, (32, 8, 3, 2, 12))
    second = state("--ckpt_path", "last", "--trainer.max_steps", "4", "--data.workers", "2")
    assert second["position"] == 16
    for cursor, came, waiting in zip(second["cursors"], second["came"], second["waiting"], strict=True):
        assert came - len(waiting) == 8
        assert cursor != (0, 0, 0)


def test_a_captioned_run_streams_from_a_web_server_and_continues(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit(stream)) == 0
    run = tmp_path / "tars"
    (start,) = json.loads((run / "manifest.json").read_text())["starts"]
    assert (start["data"]["training_images"], start["data"]["validation_images"]) == (None, VALIDATION)
    assert (run / "samples" / "000000008.png").exists()
    assert main(fit(stream, "--ckpt_path", "last", "--trainer.max_steps", "4", "--data.workers", "2",
                    "--data.skip_limit", "5")) == 0  # fmt: skip
    saved = torch.load(run / LAST, weights_only=True)
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["position"] == 16
    assert main(["predict", "--run", str(run), "--data.samples", "2"]) == 0
    capsys.readouterr()
    assert main(fit(stream, "--ckpt_path", "last", "--trainer.max_steps", "6", "--data.readers", "4")) == 1
    assert "data.init_args.readers" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [False, True])
def test_two_processes_stream_as_one_and_one_continues_where_they_stopped(
    buckets: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    delta, deltas = request.getfixturevalue("bucketed" if buckets else "stream"), IN_BUCKETS if buckets else ("tars",)
    alone = IN_TWO if buckets else ()

    def run(name: str, steps: int, *words: str) -> dict[str, Any]:
        words = "--name", name, "--trainer.max_steps", str(steps), "--data.skip_limit", "9", *words
        command = [sys.executable, "-m", "snapgen_pl", *fit(delta, *words, deltas=deltas)]
        done = subprocess.run(command, cwd=EXPERIMENTS.parent, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        return tiny_run.load(tmp_path / name / LAST)

    straight = run("straight", 6, *alone)
    two = run("parts", 3, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    one = run("parts", 6, "--ckpt_path", "last", "--data.workers", "0", *alone)
    assert two["images_seen"] == 12
    loaders = [saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] for saved in (straight, one)]
    assert loaders[0] == loaders[1]
    weights = [saved["state_dict"] for saved in (straight, one)]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-4


def test_one_fault_too_many_ends_a_run_with_its_name(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in map(Path, write_shards(tmp_path / "train", SIZES)):
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert main(fit(stream, "--data.shards", str(tmp_path / "train"))) == 1
    said = "".join(capsys.readouterr().err.split())
    assert "anddata.skip_limitis0,thelastofthem:" in said
    skipped = tmp_path / "tars" / "skipped.jsonl"
    assert str(skipped) in said
    (fault,) = map(json.loads, skipped.read_text().splitlines())
    assert fault["shard"] in said


def test_the_delta_leaves_nothing_of_latents_and_states(capsys: pytest.CaptureFixture[str]) -> None:
    files = [EXPERIMENTS / "t2i" / f"{name}.yaml" for name in ("kd_output", "tars")]
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *(word for file in files for word in ("--config", str(file))), "--print_config"])
    resolved = yaml.safe_load(capsys.readouterr().out)["data"]
    assert resolved["class_path"] == "snapgen_pl.data.tar_data.TarData"
    assert {"image_size": 1024, "batch_size": 2048, "min_size": 1024}.items() <= resolved["init_args"].items()
    assert not {"source", "text_states", "condition"} & resolved["init_args"].keys()
