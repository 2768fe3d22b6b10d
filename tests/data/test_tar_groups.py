"""Tars in buckets: groups of one size, the same on any hardware, resumed to the bit, nothing lost on the way."""

import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from snapgen_pl.conditioning.condition import texts
from snapgen_pl.data.assembler import Assembly
from snapgen_pl.data.buckets import Buckets, Size
from snapgen_pl.data.faults import Skipped
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.tar_loader import StreamState, TarLoader, join
from snapgen_pl.data.tar_parts import Share
from snapgen_pl.data.tar_samples import Packed
from snapgen_pl.data.tar_stream import TarStream
from snapgen_pl.data.transforms import crop_to, random_flip, to_pixels
from snapgen_pl.data.unpacker import Unpacker
from tests.bucket_run import BUCKETS
from tests.data.test_tar_stream import same
from tests.shards import emoji, encoded, shape, undecodable, write_files, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:skipped")

SIZES = [9, 7, 11, 8, 10, 9]
SEED, GROUP, READERS = 11, 4, 4
BATCH = 16  # an optimizer step: four groups
ASSEMBLY = Assembly(dataclasses.replace(BUCKETS, group=GROUP), patience=12)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return tuple(write_shards(tmp_path_factory.mktemp("shards"), SIZES, shaped=True))


def stream(shards: Sequence[str]) -> TarStream:
    return TarStream(tuple(shards), None, READERS, shuffle=5, seed=SEED)


def loader(
    shards: Sequence[str],
    micro_batch: int = GROUP,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    limit: int = 0,
    min_size: int | None = None,
    assembly: Assembly = ASSEMBLY,
) -> TarLoader:
    share = Share(micro_batch, rank, world_size)
    return TarLoader(stream(shards), Unpacker(16, min_size), SEED, share, workers, Skipped(limit, None), assembly)


def some(of: TarLoader, images: int) -> list[ImageBatch]:
    """So many, over all processes."""
    return list(islice(iter(of), images // of.share.micro_batch // of.share.world_size))


def groups(parts: Sequence[ImageBatch]) -> list[ImageBatch]:
    """In the stream's order; each micro-batch must be of one."""
    found: dict[int, list[ImageBatch]] = {}
    for batch in parts:
        (number,) = {position // GROUP for position in batch.position_B.tolist()}
        found.setdefault(number, []).append(batch)
    return [join(found[number]) for number in sorted(found)]


def equal(left: Sequence[ImageBatch], right: Sequence[ImageBatch]) -> bool:
    pairs = zip(groups(left), groups(right), strict=True)
    return all(one.image_BCHW.shape == other.image_BCHW.shape and same([one], [other]) for one, other in pairs)


def indices(batches: Sequence[ImageBatch]) -> list[int]:
    captions = [emoji().caption(index) for index in range(sum(SIZES))]
    return [captions.index(caption) for batch in batches for caption in texts(batch.condition).captions]


def test_readers_take_turns_with_groups_of_the_images_of_one_shape(shards: tuple[str, ...]) -> None:
    """Against the rule, spelt out, where no image tires of waiting."""
    expected: list[list[list[int]]] = []
    for cursor in stream(shards).begin():
        waiting: dict[Size, list[int]] = {}
        made = expected[len(expected) :] = [[]]
        for _, (_, _, sample) in islice(stream(shards).read(cursor), 60):
            assert isinstance(sample, Packed)
            held = waiting.setdefault(shape(int(sample.key)), [])
            held.append(int(sample.key))
            if len(held) == GROUP:
                made[0].append(held.copy())
                held.clear()
    found = groups(some(loader(shards, assembly=dataclasses.replace(ASSEMBLY, patience=1000)), 32 * GROUP))
    assert [indices([group]) for group in found] == [expected[n % READERS][n // READERS] for n in range(32)]
    assert torch.cat([group.position_B for group in found]).tolist() == list(range(32 * GROUP))
    for group in found:
        pixels = []
        for index in indices([group]):
            image = Image.open(io.BytesIO(encoded(index, side=shape(index).width, height=shape(index).height)))
            pixels.append(to_pixels(crop_to(image.convert("RGB"), BUCKETS.sizes[BUCKETS.index(shape(index))])))
        assert torch.equal(group.image_BCHW, random_flip(torch.stack(pixels), group.position_B, SEED))


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batch"), [(1, 2, 2), (1, 0, 1), (2, 0, 4), (2, 2, 2), (4, 0, 1), (4, 1, 4)]
)
def test_the_stream_is_the_same_on_any_number_of_processes_workers_and_micro_batches(
    shards: tuple[str, ...], world_size: int, workers: int, micro_batch: int
) -> None:
    parts = [loader(shards, micro_batch, rank, world_size, workers) for rank in range(world_size)]
    found = [batch for part in parts for batch in some(part, 8 * BATCH)]
    assert all(len(batch.position_B) == micro_batch for batch in found)
    assert equal(found, some(loader(shards), 8 * BATCH))


def test_any_step_of_processes_has_the_images_of_the_step_of_one(shards: tuple[str, ...]) -> None:
    for world_size, micro_batch in ((1, 4), (2, 2), (4, 1)):
        parts = [iter(loader(shards, micro_batch, rank, world_size)) for rank in range(world_size)]
        for step in range(6):
            step_of = [batch for part in parts for batch in islice(part, BATCH // world_size // micro_batch)]
            assert groups(step_of)[0].position_B[0] == step * BATCH
            assert len(groups(step_of)) == BATCH // GROUP


Hardware = tuple[int, int, int]  # processes, workers, micro-batch


def run(
    shards: Sequence[str], hardware: Hardware, state: StreamState | None, steps: int
) -> tuple[list[ImageBatch], StreamState]:
    world_size, workers, micro_batch = hardware
    parts = [loader(shards, micro_batch, rank, world_size, workers, limit=100) for rank in range(world_size)]
    for part in parts if state is not None else ():
        part.load_state_dict(state)
    batches = [batch for part in parts for batch in some(part, steps * BATCH)]
    told = [part.own_state() for part in parts]
    (whole,) = {repr(part.joined_state(told)): part.joined_state(told) for part in parts}.values()
    return batches, whole


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 0, 4), (1, 0, 4)),
        ((1, 2, 4), (1, 0, 2)),
        ((1, 0, 4), (2, 2, 2)),
        ((4, 0, 4), (1, 2, 1)),
        ((2, 1, 1), (4, 1, 2)),
    ],
)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_run_continues_on_any_hardware_with_what_waits(
    shards: tuple[str, ...], before: Hardware, after: Hardware, steps: int
) -> None:
    first, state = run(shards, before, None, steps)
    assert sum(map(len, state["waiting"])) >= GROUP
    second, end = run(shards, after, state, 6)
    straight, expected = run(shards, (1, 0, 4), None, steps + 6)
    assert equal([*first, *second], straight)
    assert end == expected


def test_a_loader_may_be_stopped_after_every_group(shards: tuple[str, ...]) -> None:
    straight = some(loader(shards), 30 * GROUP)
    state = loader(shards).state_dict()
    for batch in straight:
        resumed = loader(shards)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert equal(some(resumed, GROUP), [batch])
        state = resumed.state_dict()


def test_workers_take_turns_from_the_group_that_is_next(shards: tuple[str, ...]) -> None:
    first = loader(shards, workers=2)
    before = some(first, 3 * GROUP)
    resumed = loader(shards, workers=2)
    resumed.load_state_dict(first.state_dict())
    assert equal([*before, *some(resumed, 4 * GROUP)], some(loader(shards), 7 * GROUP))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(0, 10), patience=st.integers(GROUP, 80))
def test_what_was_read_was_given_or_waits(shards: tuple[str, ...], steps: int, patience: int) -> None:
    """Each sample that a reader has passed, once an epoch: nothing is lost, and nothing comes twice."""
    of = loader(shards, assembly=dataclasses.replace(ASSEMBLY, patience=patience))
    given_ = Counter(indices(some(of, steps * BATCH)))
    state, read = of.state_dict(), Counter[int]()
    for cursor, came, seats in zip(stream(shards).begin(), state["came"], state["waiting"], strict=True):
        passed = list(islice(stream(shards).read(cursor), came))
        read.update(int(sample.key) for _, (_, _, sample) in passed if isinstance(sample, Packed))
        keys = {placed[:2]: placed.sample.key for _, placed in passed if isinstance(placed.sample, Packed)}
        given_.update(int(keys[shard, number]) for shard, number, _, _ in seats)
        assert len(seats) <= len(ASSEMBLY.buckets.sizes) * (GROUP - 1)
    assert given_ == read


def faulty(shard: Path) -> str:
    """Images 0 to 19, of which 2 has no caption, 5 and 6 are cut off, 7 is too small, and 11 is no image at all."""

    def files(index: int) -> dict[str, bytes]:
        height, width = (5, 5) if index == 7 else shape(index)
        content = b"no image" if index == 11 else encoded(index, side=width, height=height)
        image = {"png": content[: len(content) // 2] if index in (5, 6) else content}
        return image if index == 2 else image | {"txt": emoji().caption(index).encode()}

    return write_files(shard, map(files, range(20)))


@pytest.fixture
def damaged(tmp_path: Path) -> list[str]:
    return [faulty(tmp_path / f"{number}.tar") for number in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_leave_no_hole_in_a_group_and_are_counted_once(damaged: list[str], workers: int) -> None:
    straight = loader(damaged, limit=100, min_size=8)
    batches = some(straight, 8 * BATCH)
    assert all(len(batch.position_B) == GROUP for batch in batches)
    assert set(indices(batches)) == set(range(20)) - {2, 5, 6, 7, 11}
    parts: list[ImageBatch] = []
    state = loader(damaged).state_dict()
    for steps in (1, 3, 4):
        resumed = loader(damaged, workers=workers, limit=100, min_size=8)
        resumed.load_state_dict(state)
        parts += some(resumed, steps * BATCH)
        state = resumed.state_dict()
    assert equal(parts, batches)
    assert state == straight.state_dict()
    assert state["skipped"][0] > 16
    assert state["skipped"][1] > 4


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_one_fault_more_than_the_limit_ends_the_run_at_the_same_group(
    damaged: list[str], limit: int, workers: int
) -> None:
    counted = loader(damaged, limit=100)
    given_ = 0
    for _ in iter(counted):
        if counted.skipped.total.faults > limit:
            break
        given_ += 1
    stopped = iter(loader(damaged, limit=limit, workers=workers))
    assert len(list(islice(stopped, given_))) == given_
    with pytest.raises(ValueError, match=rf"and data\.skip_limit is {limit}, the last of them: '0000"):
        next(stopped)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_bad_in_a_later_pass_ends_the_run_and_shortens_no_group(tmp_path: Path, workers: int) -> None:
    shards = write_shards(tmp_path, SIZES, shaped=True)
    batches = iter(loader(shards, workers=workers, limit=2))
    handed = list(islice(batches, 3 * sum(SIZES) // GROUP))
    for shard in shards:
        undecodable(Path(shard), 8)
    with pytest.raises(ValueError, match=r"could not be used in \d passes over all shards, and data\.skip_limit is 2"):
        handed += batches
    assert {len(batch.position_B) for batch in handed} == {GROUP}


def test_a_stream_without_an_image_of_use_ends(shards: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"100 shards in a row hold no image of use: \d+ images were smaller"):
        next(iter(loader(shards[:4], min_size=65)))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([48, 64, 96]))
def test_what_its_bucket_would_enlarge_too_much_is_left_out(height: int, width: int, min_size: int) -> None:
    buckets, content = Buckets(64, step=8), io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "PNG")
    packed = Packed("shard", "key", content.getvalue(), "a caption")
    found = Unpacker(64, min_size, buckets).size(packed)
    to = buckets.sizes[buckets.index(Size(height, width))]
    enlarged = max(Fraction(to.height, height), Fraction(to.width, width))
    assert (found is None) == (enlarged > Fraction(64, min_size))


def test_what_waited_and_is_gone_is_a_fault(tmp_path: Path) -> None:
    before = write_shards(tmp_path, SIZES, shaped=True)
    first = loader(before)
    some(first, 5 * BATCH)
    state = first.state_dict()
    after = write_shards(tmp_path, [1] * len(SIZES), shaped=True)
    gone = sum(number > 0 for seats in state["waiting"] for _, number, _, _ in seats)
    assert gone > 1
    resumed = loader(after, limit=gone)
    resumed.load_state_dict(state)
    some(resumed, READERS * GROUP)
    assert resumed.skipped.own.faults == gone


def test_what_waits_alone_is_read_again(shards: tuple[str, ...]) -> None:
    of = stream(shards)
    read = [placed for _, placed in islice(of.read(of.begin()[1]), 30)]
    again = list(of.again(placed[:2] for placed in read[::-7]))
    assert again == sorted(read[::-7], key=lambda placed: placed[:2])


def test_another_stream_is_not_resumed(shards: tuple[str, ...]) -> None:
    first = loader(shards)
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    for other in (dataclasses.replace(ASSEMBLY, patience=13), Assembly(Buckets(16, 8, 3, 2), 12)):
        with pytest.raises(ValueError, match=r"saved with data\.buckets and data\.patience \(16, 8, 3, 4, 12\)"):
            loader(shards, 2, assembly=other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"data\.buckets and data\.patience \(16, 8, 3, 4, 12\), and there are None"):
        TarLoader(stream(shards), Unpacker(16, None), SEED, Share(GROUP), 0, Skipped(0, None)).load_state_dict(state)
    with pytest.raises(ValueError, match="divides among 2 processes in whole groups, got 4"):
        loader(shards, 2, 0, 2).load_state_dict(state)


def test_a_state_survives_a_checkpoint_of_plain_values(shards: tuple[str, ...], tmp_path: Path) -> None:
    saved = loader(shards)
    some(saved, 3 * BATCH)
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == saved.state_dict()
