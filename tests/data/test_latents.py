import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.conditions import Captioned, Labels
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.latents import FORMAT, LatentFacts, Latents, ShardSet, latent_tensors
from snapgen_pl.data.loader import LatentSamples, ResumableLoader, Sample
from snapgen_pl.data.shards import MANIFEST, Plan, Shard, read_shard, write_manifest, write_shard
from snapgen_pl.data.transforms import mirrored

FACTS = LatentFacts(
    autoencoder={"class": "KL", "weights": "abc", "channels": 2, "downsampling": 4, "shift": 0.0, "scale": 0.5},
    image_size=16,
    flips=2,
    dtype="float16",
    classes=("cat", "dog"),
)


def plan_of(facts: LatentFacts) -> Plan:
    return Plan(FORMAT, facts.as_json(), "fingerprint", (10, 5), 4)


PLAN = plan_of(FACTS)


def posterior(shard: Shard, flips: int = 2) -> Posterior:
    """Latents that say which image and which flip they are of."""
    first = shard.first + (1000 if shard.split == "validation" else 0)
    index = torch.arange(first, first + shard.count)[:, None] + torch.arange(flips) / 2
    mean = index[:, :, None, None, None].expand(-1, -1, 2, 4, 4)
    return Posterior(mean, mean / 4096)


def write_latents(folder: Path, shard: Shard, latents: Posterior, plan: Plan = PLAN) -> None:
    labels = torch.arange(shard.count) % 2
    captions = [f"{shard.split} {shard.first + i}: a café" for i in range(shard.count)]
    write_shard(folder, plan, shard, latent_tensors(latents, "float16", labels, captions))


def write(folder: Path, facts: LatentFacts = FACTS) -> Path:
    folder.mkdir()
    plan = plan_of(facts)
    for shard in plan.shards:
        write_latents(folder, shard, posterior(shard, facts.flips), plan)
    write_manifest(folder, plan, {"by": "a test"})
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "latents")


def test_a_plan_covers_every_image_once() -> None:
    assert [(s.file, s.first, s.count) for s in PLAN.shards] == [
        ("train-00000.safetensors", 0, 4),
        ("train-00001.safetensors", 4, 4),
        ("train-00002.safetensors", 8, 2),
        ("validation-00000.safetensors", 0, 4),
        ("validation-00001.safetensors", 4, 1),
    ]


def test_what_was_written_is_read_in_any_order(shards: Path) -> None:
    opened = Latents(str(shards)).open()
    assert opened.classes == ("cat", "dog")
    assert (len(opened.train), len(opened.validation)) == (10, 5)
    assert isinstance(opened.train, ShardSet)
    assert opened.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    loaded = opened.train.load([9, 0, 5], [True, False, True])
    assert loaded.mean_BCHW.dtype == torch.float16
    assert loaded.mean_BCHW.shape == (3, 2, 4, 4)
    assert loaded.mean_BCHW[:, 0, 0, 0].tolist() == [9.5, 0, 5.5]
    assert loaded.std_BCHW is not None
    torch.testing.assert_close(loaded.std_BCHW, loaded.mean_BCHW / 4096)


def test_captions_are_read_where_there_are_any(tmp_path: Path, shards: Path) -> None:
    validation = Latents(str(shards)).open().validation
    assert isinstance(validation, Captioned)
    assert [validation.caption(index) for index in (4, 0)] == ["validation 4: a café", "validation 0: a café"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in PLAN.shards:
        labels = torch.zeros(shard.count, dtype=torch.int64)
        write_shard(bare, PLAN, shard, latent_tensors(posterior(shard), "float16", labels, None))
    write_manifest(bare, PLAN, {})
    assert not isinstance(Latents(str(bare)).open().train, Captioned)


def test_an_encoder_that_is_certain_leaves_no_deviations(tmp_path: Path) -> None:
    shard = PLAN.shards[0]
    write_latents(tmp_path, shard, Posterior(posterior(shard).mean_BCHW))
    assert "std" not in read_shard(tmp_path, PLAN, shard).tensors


def test_latents_beyond_the_types_range_are_not_written() -> None:
    mean = posterior(PLAN.shards[0]).mean_BCHW * 1e5
    with pytest.raises(ValueError, match=r"not finite in float16; encode with --model\.dtype float32"):
        latent_tensors(Posterior(mean), "float16", torch.zeros(4, dtype=torch.int64), None)


def flip_a_bit(folder: Path) -> None:
    file = folder / "train-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    file = folder / "train-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def swap(folder: Path) -> None:
    first, second = folder / "train-00000.safetensors", folder / "train-00001.safetensors"
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def change_scale(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["autoencoder"]["scale"] = 0.7
    (folder / MANIFEST).write_text(json.dumps(manifest))


def mix_autoencoders(folder: Path) -> None:
    other = write(folder.parent / "other", FACTS._replace(autoencoder={**FACTS.autoencoder, "weights": "xyz"}))
    shutil.copy(other / "train-00001.safetensors", folder)


def mix_runs(folder: Path) -> None:
    """A shard that belongs here by its header, with other content, whole in itself."""
    shard = PLAN.shards[1]
    write_latents(folder, shard, Posterior(posterior(shard).mean_BCHW + 1))


def put_another_file(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "train-00001.safetensors")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip_a_bit, r"train-00001\.safetensors is damaged: its content is not what was written"),
        (truncate, r"train-00001\.safetensors is damaged .*delete it and encode again"),
        (swap, r"train-00000\.safetensors holds what belongs into train-00001\.safetensors"),
        (change_scale, r"autoencoder\.scale is 0\.5 there, 0\.7 here"),
        (mix_autoencoders, r'train-00001\.safetensors is of another .*autoencoder\.weights is "xyz" there, "abc" here'),
        (mix_runs, r"train-00001\.safetensors is damaged: its content is not what was written"),
        (put_another_file, r"train-00001\.safetensors is no shard of snapgen_pl latents 1"),
        (lambda folder: (folder / "train-00002.safetensors").unlink(), r"train-00002\.safetensors is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), r"manifest\.json does not exist; give a folder that `predict`"),
        (lambda folder: (folder / MANIFEST).write_text("{"), r"manifest\.json is no JSON"),
        (
            lambda folder: (folder / MANIFEST).write_text('{"format": "x"}'),
            r"is not of format 'snapgen_pl latents 1'; give another folder",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else "",
)
def test_each_harm_is_refused_by_name(shards: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(shards)
    data = ImageData(Latents(str(shards)), image_size=16, batch_size=4)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_unverified_shards_are_still_told_apart_by_their_headers(shards: Path) -> None:
    flip_a_bit(shards)
    for verify, stage in ((False, "fit"), (True, "predict")):
        ImageData(Latents(str(shards), verify), image_size=16, batch_size=4).setup(stage)
    swap(shards)
    with pytest.raises(ValueError, match="holds what belongs into"):
        Latents(str(shards), verify=False).open()


def test_the_fingerprint_is_of_the_content(tmp_path: Path, shards: Path) -> None:
    before = Latents(str(shards)).open().fingerprint
    assert Latents(str(write(tmp_path / "again"))).open().fingerprint == before
    shard = PLAN.shards[0]
    write_latents(shards, shard, Posterior(posterior(shard).mean_BCHW + 1))
    write_manifest(shards, PLAN, {})
    assert Latents(str(shards)).open().fingerprint != before


def test_a_sample_is_mirrored_by_its_position_and_brings_its_own_label(shards: Path) -> None:
    latents = Latents(str(shards)).open().train
    assert isinstance(latents, ShardSet)
    samples = [Sample(position, position % 10) for position in range(30, 60)]
    batch = LatentSamples(latents, Labels(latents.labels), flip_seed=3).__getitems__(samples)
    flips = mirrored(batch.position_B, 3)
    assert 0 < flips.sum() < 30
    assert torch.equal(batch.posterior.mean_BCHW[:, 0, 0, 0], torch.arange(30) % 10 + flips.half() / 2)
    assert torch.equal(batch.condition, torch.arange(30) % 10 % 2)


def loader(shards: Path, workers: int) -> ResumableLoader:
    data = ImageData(Latents(str(shards)), image_size=16, batch_size=4, flip=True, workers=workers)
    data.setup("fit")
    return data.train_dataloader()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_resumes_in_the_middle_of_an_epoch(shards: Path, workers: int) -> None:
    batches = list(islice(loader(shards, workers), 6))
    again = loader(shards, workers)
    again.load_state_dict({"position": 12})
    for expected, batch in zip(batches[3:], again, strict=False):
        assert torch.equal(expected.posterior.mean_BCHW, batch.posterior.mean_BCHW)
        assert torch.equal(expected.posterior.std_BCHW, batch.posterior.std_BCHW)
        assert torch.equal(expected.position_B, batch.position_B)


def test_settings_that_do_not_fit_the_latents_are_refused(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size is 32, but the latents are of images of 16 pixels"):
        ImageData(Latents(str(shards)), image_size=32, batch_size=4).setup("fit")
    single = write(tmp_path / "single", FACTS._replace(flips=1))
    with pytest.raises(ValueError, match=r"flip is true, but no mirror images were encoded"):
        ImageData(Latents(str(single)), image_size=16, batch_size=4, flip=True).setup("fit")
    with pytest.raises(ValueError, match=r"latents are of squares; leave data\.buckets out"):
        ImageData(Latents(str(shards)), image_size=16, batch_size=4, buckets=Buckets(16, 8)).setup("fit")
    data = ImageData(Latents(str(shards)), image_size=16, batch_size=4)
    data.setup("fit")
    with pytest.raises(ValueError, match="no autoencoder can be fitted"):
        next(data.training_images(4))
    data.check_autoencoder({**FACTS.autoencoder, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r"scale is 0\.5 in the latents' manifest, 0\.6 in the run"):
        data.check_autoencoder({**FACTS.autoencoder, "scale": 0.6})
