"""The stream of tars: each sample once an epoch, the same on any hardware, resumed to the bit."""

import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path

import pytest
import torch
from PIL import Image

from snapgen_pl.conditioning.condition import texts
from snapgen_pl.data.faults import Fault, Skipped
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.tar_loader import StreamState, TarLoader, join
from snapgen_pl.data.tar_parts import Share
from snapgen_pl.data.tar_samples import Packed
from snapgen_pl.data.tar_stream import TarStream
from snapgen_pl.data.transforms import centre_crop, random_flip, to_pixels
from snapgen_pl.data.unpacker import Unpacker
from tests.shards import emoji, encoded, undecodable, write_files, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:skipped")

SIZES = [5, 3, 7, 4, 6, 5]
SEED, BATCH = 11, 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return tuple(write_shards(tmp_path_factory.mktemp("shards"), SIZES))


def stream(shards: Sequence[str], readers: int = 4, shuffle: int = 4) -> TarStream:
    return TarStream(tuple(shards), None, readers, shuffle, SEED)


def loader(
    shards: Sequence[str],
    micro_batch: int = BATCH,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    limit: int = 0,
    unpacker: Unpacker = Unpacker(16, None),  # noqa: B008  (frozen)
) -> TarLoader:
    share = Share(micro_batch, rank, world_size)
    return TarLoader(stream(shards), unpacker, SEED, share, workers, Skipped(limit, None))


def some(of: TarLoader, count: int) -> list[ImageBatch]:
    return list(islice(iter(of), count))


def same(left: Sequence[ImageBatch], right: Sequence[ImageBatch]) -> bool:
    one, other = join(left), join(right)
    tensors = zip((one.image_BCHW, one.position_B), (other.image_BCHW, other.position_B), strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and texts(one.condition) == texts(other.condition)


def keys(of: TarStream, reader: int, count: int) -> list[str]:
    samples = islice(of.read(of.begin()[reader]), count)
    return [sample.key for _, (_, _, sample) in samples if isinstance(sample, Packed)]


def epochs(of: TarStream, reader: int, count: int) -> list[str]:
    """What a reader gives in its first epochs; no block reaches from one into another."""
    places = takewhile(lambda place: place[0].shard < count * len(of.shards), of.read(of.begin()[reader]))
    return [sample.key for _, (_, _, sample) in places if isinstance(sample, Packed)]


@pytest.mark.parametrize(("readers", "shuffle"), [(1, 1), (1, 100), (2, 4), (4, 4), (6, 100)])
def test_every_sample_comes_once_an_epoch_to_one_reader(shards: tuple[str, ...], readers: int, shuffle: int) -> None:
    for count in (1, 3):
        found = [key for reader in range(readers) for key in epochs(stream(shards, readers, shuffle), reader, count)]
        assert Counter(found) == {f"{index:06d}": count for index in range(sum(SIZES))}


def test_epochs_and_seeds_have_orders_of_their_own(shards: tuple[str, ...]) -> None:
    total = sum(SIZES)
    one = keys(stream(shards, 1), 0, 2 * total)
    other = keys(dataclasses.replace(stream(shards, 1), seed=SEED + 1), 0, total)
    assert len({tuple(one[:total]), tuple(one[total:]), tuple(other)}) == 3


def test_blocks_are_shuffled_and_hold_no_more_than_they_may(shards: tuple[str, ...]) -> None:
    unshuffled, shuffled = (keys(stream(shards, 1, shuffle), 0, sum(SIZES)) for shuffle in (1, 8))
    assert unshuffled != shuffled
    blocks = [range(first, min(first + 8, sum(SIZES))) for first in range(0, sum(SIZES), 8)]
    assert all({*unshuffled[b.start : b.stop]} == {*shuffled[b.start : b.stop]} for b in blocks)


def test_the_order_of_a_run_does_not_change_between_releases(shards: tuple[str, ...]) -> None:
    """A golden value, as for images that are read by place."""
    assert [int(key) for key in keys(stream(shards, 2), 1, 8)] == [0, 2, 1, 3, 10, 9, 8, 4]


def test_batches_are_the_images_with_their_captions_flipped_by_position(shards: tuple[str, ...]) -> None:
    batch = join(some(loader(shards), 3))
    captions = [emoji().caption(index) for index in range(sum(SIZES))]
    indices = [captions.index(caption) for caption in texts(batch.condition).captions]
    pixels = torch.stack([to_pixels(centre_crop(emoji().load(index), 16)) for index in indices])
    assert batch.position_B.tolist() == list(range(12))
    assert torch.equal(batch.image_BCHW, random_flip(pixels, batch.position_B, SEED))


@pytest.mark.parametrize(
    ("world_size", "workers", "accumulate"), [(1, 2, 1), (2, 0, 1), (2, 2, 1), (4, 0, 1), (1, 2, 2), (2, 0, 2)]
)
def test_the_stream_is_the_same_on_any_number_of_processes_workers_and_micro_batches(
    shards: tuple[str, ...], world_size: int, workers: int, accumulate: int
) -> None:
    micro_batch = BATCH // world_size // accumulate
    parts = [loader(shards, micro_batch, rank, world_size, workers) for rank in range(world_size)]
    found = [batch for part in parts for batch in some(part, 6 * accumulate)]
    assert all(len(batch.position_B) == micro_batch for batch in found)
    assert same(found, some(loader(shards), 6))


# In a block, across the ends of shards, of an epoch, of the second.
@pytest.mark.parametrize(("workers", "taken"), [(0, 1), (0, 5), (0, 8), (0, 17), (2, 1), (2, 8)])
def test_a_resumed_loader_continues_exactly(shards: tuple[str, ...], workers: int, taken: int) -> None:
    straight = some(loader(shards), taken + 8)
    interrupted = loader(shards, workers=workers)
    before = some(interrupted, taken)
    state = interrupted.state_dict()
    assert state["position"] == BATCH * taken
    resumed = loader(shards, workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert same([*before, *some(resumed, 8)], straight)


def test_a_loader_may_be_stopped_after_every_batch(shards: tuple[str, ...]) -> None:
    straight = some(loader(shards), 20)
    state = loader(shards).state_dict()
    for batch in straight:
        resumed = loader(shards)
        resumed.load_state_dict(state)
        assert same(some(resumed, 1), [batch])
        state = resumed.state_dict()


@pytest.mark.parametrize(("before", "after"), [((1, 0), (2, 2)), ((2, 0), (1, 2)), ((4, 0), (2, 0))])
def test_a_run_continues_on_other_hardware(
    shards: tuple[str, ...], before: tuple[int, int], after: tuple[int, int]
) -> None:
    """(processes, workers): the state is what all processes tell."""

    def run(hardware: tuple[int, int], state: StreamState | None, count: int) -> tuple[list[ImageBatch], StreamState]:
        world_size, workers = hardware
        parts = [loader(shards, BATCH // world_size, rank, world_size, workers) for rank in range(world_size)]
        for part in parts if state is not None else ():
            part.load_state_dict(state)
        batches = [batch for part in parts for batch in some(part, count)]
        told = [part.own_state() for part in parts]
        (whole,) = {repr(part.joined_state(told)): part.joined_state(told) for part in parts}.values()
        return batches, whole

    first, state = run(before, None, 5)
    second, _ = run(after, state, 6)
    assert same([*first, *second], some(loader(shards), 11))


def faulty(shard: Path, side: int = 64) -> str:
    """Images 0 to 9, of which 2 has no caption, 5 is cut off and 7 is half as large."""

    def files(index: int) -> dict[str, bytes]:
        content = encoded(index, side=side // 2 if index == 7 else side)
        image = {"png": content[: len(content) // 2] if index == 5 else content}
        return image if index == 2 else image | {"txt": emoji().caption(index).encode()}

    return write_files(shard, map(files, range(10)))


@pytest.fixture
def damaged(tmp_path: Path) -> list[str]:
    return [faulty(tmp_path / f"{number}.tar") for number in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_of_what_is_skipped_survive_a_resume(damaged: list[str], workers: int) -> None:
    unpacker = Unpacker(16, 64)
    straight = loader(damaged, limit=100, unpacker=unpacker)
    batches = some(straight, 14)
    assert straight.state_dict()["skipped"] == (16, 8)  # of 80 samples in two epochs
    parts: list[ImageBatch] = []
    state = loader(damaged).state_dict()
    for count in (3, 4, 7):
        resumed = loader(damaged, workers=workers, limit=100, unpacker=unpacker)
        resumed.load_state_dict(state)
        parts += some(resumed, count)
        state = resumed.state_dict()
    assert same(parts, batches)
    assert state == straight.state_dict()
    assert {caption for batch in batches for caption in texts(batch.condition).captions} == {
        emoji().caption(index) for index in (0, 1, 3, 4, 6, 8, 9)
    }


@pytest.mark.parametrize("limit", [0, 1, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_one_fault_more_than_the_limit_ends_the_run_at_the_same_batch(
    damaged: list[str], limit: int, workers: int
) -> None:
    counted = loader(damaged, limit=100)
    given = 0
    for _ in iter(counted):
        if counted.skipped.total.faults > limit:
            break
        given += 1
    stopped = loader(damaged, limit=limit, workers=workers)
    batches = iter(stopped)
    assert len(list(islice(batches, given))) == given
    with pytest.raises(ValueError, match=rf"and data\.skip_limit is {limit}, the last of them: '00000[25].*in .*\.tar"):
        next(batches)


def test_each_pass_may_meet_the_same_faults_again(damaged: list[str]) -> None:
    in_a_pass = 8
    bearing = loader(damaged, limit=in_a_pass)
    some(bearing, 28)
    state = bearing.state_dict()
    assert state["skipped"][0] > 3 * in_a_pass
    resumed = loader(damaged, limit=in_a_pass)
    resumed.load_state_dict(state)
    some(resumed, 7)
    strict = loader(damaged, limit=in_a_pass // 2)
    strict.load_state_dict(state)
    with pytest.raises(ValueError, match=r"could not be used in 4 passes over all shards, and data\.skip_limit is 4"):
        some(strict, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_bad_in_a_later_pass_ends_the_run_and_shortens_no_batch(tmp_path: Path, workers: int) -> None:
    shards = write_shards(tmp_path, [8] * 4)
    stopped = loader(shards, workers=workers, limit=2)
    batches = iter(stopped)
    handed = list(islice(batches, 24))  # of 8 a pass
    for shard in shards:
        undecodable(Path(shard), 8)
    with pytest.raises(ValueError, match=r"could not be used in \d passes over all shards, and data\.skip_limit is 2"):
        handed += batches
    assert {len(batch.position_B) for batch in handed} == {BATCH}


def test_ranks_that_lag_behind_bear_what_all_may(damaged: list[str]) -> None:
    parts = [loader(damaged, 2, rank, 2, limit=8) for rank in range(2)]
    batches = [iter(part) for part in parts]
    for step in range(40):
        for each in batches:
            next(each)
        if step % 3 == 0:
            told = [part.own_state() for part in parts]
            states = [part.joined_state(told) for part in parts]
    assert parts[0].skipped.total.faults > 3 * 8
    for rank in range(2):
        resumed = loader(damaged, 2, rank, 2, limit=8)
        resumed.load_state_dict(states[0])
        some(resumed, 4)


def test_faults_of_other_processes_and_of_earlier_sessions_count_too(damaged: list[str]) -> None:
    parts = [loader(damaged, 2, rank, 2, limit=3) for rank in range(2)]
    for part in parts:
        some(part, 3)
    told = [part.own_state() for part in parts]
    faults = sum(own.skipped.faults for own in told)
    assert all(0 < own.skipped.faults < faults for own in told)
    parts[0].joined_state(told)
    assert parts[0].skipped.total.faults == faults
    resumed = loader(damaged, limit=faults - 1)
    resumed.load_state_dict(parts[0].joined_state(told))
    with pytest.raises(ValueError, match=rf"^{faults} samples or shards could not be used"):
        next(iter(resumed))


def test_a_stream_without_an_image_of_use_ends(shards: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"100 shards in a row hold no image of use: \d+ images were smaller"):
        next(iter(loader(shards[:4], unpacker=Unpacker(16, 65))))


def image(width: int, height: int, format_name: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, format_name)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "UnidentifiedImageError"),
        (b"<html>", "UnidentifiedImageError"),
        (encoded(0, "jpg")[:-200], "OSError: image file is truncated"),
        (image(8, 8, "GIF"), "UnidentifiedImageError"),
        (image(1, 9000), "its sides, 1 x 9000, differ too much"),
    ],
    ids=["empty", "no image", "truncated", "another format", "a line"],
)
def test_what_does_not_decode_is_a_fault(content: bytes, reason: str) -> None:
    fault = Unpacker(256, None).pixels(Packed("s.tar", "a", content, "a caption"))
    assert isinstance(fault, Fault)
    assert (fault.shard, fault.key, reason in fault.reason) == ("s.tar", "a", True), fault


def test_a_decompression_bomb_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow only warns of images up to twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    for side in (64, 80):
        fault = Unpacker(16, None).pixels(Packed("s.tar", "a", image(side, side), "a caption"))
        assert isinstance(fault, Fault)
        assert "DecompressionBomb" in fault.reason


def test_a_small_image_is_left_out_only_where_that_is_asked_for() -> None:
    small = Packed("s.tar", "a", image(80, 20), "a caption")
    assert Unpacker(32, 21).pixels(small) is None
    for bound in (None, 20):
        pixels = Unpacker(32, bound).pixels(small)
        assert isinstance(pixels, torch.Tensor)
        assert pixels.shape == (3, 32, 32)


def test_another_stream_is_not_resumed(shards: tuple[str, ...]) -> None:
    state = loader(shards).state_dict()
    with pytest.raises(ValueError, match=r"saved with shards 6, and there are 5 now"):
        loader(shards[:5]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"saved with data\.readers 3, and there are 4 now"):
        loader(shards).load_state_dict({**state, "cursors": [(0, 0, 0)] * 3})
    with pytest.raises(ValueError, match=r"saved with data\.shuffle 5, and there are 4 now"):
        loader(shards).load_state_dict({**state, "shuffle": 5})
    with pytest.raises(ValueError, match="divides among 2 processes, got 3"):
        loader(shards, 2, 0, 2).load_state_dict({**state, "position": 3})


def test_a_state_survives_a_checkpoint_of_plain_values(shards: tuple[str, ...], tmp_path: Path) -> None:
    saved = loader(shards)
    some(saved, 3)
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == saved.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_numbers_alone(shards: tuple[str, ...], workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    some(loader(shards, workers=workers), 2)
    assert torch.equal(torch.get_rng_state(), before)
