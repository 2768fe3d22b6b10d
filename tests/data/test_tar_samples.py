"""Shards, whole and damaged, as their reader sees them."""

import gzip
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.data.faults import Fault
from snapgen_pl.data.tar_samples import Packed, read_packed
from snapgen_pl.data.tar_shards import identity, list_shards
from tests.shards import encoded, packed, sample, write_shards

COUNT = 6
IMAGE = encoded(0)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def good(key: str) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    return [(f"{key}.png", IMAGE), (f"{key}.txt", b"a  caption\n")]


def read(shard: Path, caption_key: str | None = None) -> tuple[list[str], list[Fault]]:
    """The keys of whole samples, and the faults."""
    found = list(read_packed(str(shard), caption_key))
    return [item.key for item in found if isinstance(item, Packed)], [i for i in found if isinstance(i, Fault)]


def test_samples_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    shard = tmp_path / "mixed.tar"
    with webdataset.TarWriter(str(shard)) as writer:
        for index, extension in enumerate(["png", "jpg", "webp", "png"]):
            writer.write(sample(index, extension) | {"__key__": f"folder/{index}", "cls": "3", "json": "{}"})
    theirs = [
        (item["__key__"], next(item[name] for name in ("png", "jpg", "webp") if name in item), item["txt"].decode())
        for item in webdataset.WebDataset(str(shard), shardshuffle=False)
    ]
    ours = [(item.key, item.image, item.caption) for item in read_packed(str(shard), None) if isinstance(item, Packed)]
    assert ours == theirs
    assert len(ours) == 4


def test_captions_may_be_entries_of_json(tmp_path: Path) -> None:
    shard = packed(
        tmp_path / "a.tar", [("a.png", IMAGE), ("a.txt", b"not this"), ("a.json", b'{"text": "a  \\u00e9"}')]
    )
    (item,) = read_packed(str(shard), "text")
    assert isinstance(item, Packed)
    assert item.caption == "a é"


@given(wanted=st.frozensets(st.integers(0, COUNT + 1)) | st.builds(range, st.integers(0, COUNT + 1), st.just(100)))
def test_samples_that_are_not_wanted_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, wanted: Collection[int]
) -> None:
    shard = packed(
        tmp_path_factory.mktemp("a") / "a.tar",
        [*good("a"), ("b.png", IMAGE), *good("c"), ("../d.png", IMAGE), *good("a"), *good("e")],
    )
    everything = list(read_packed(str(shard), None))
    assert [isinstance(item, Fault) for item in everything] == [False, True, False, True, True, False]
    expected = [item for number, item in enumerate(everything) if number in wanted]
    assert list(read_packed(str(shard), None, wanted)) == expected


def test_a_shard_that_is_gone_is_a_fault_whatever_is_wanted_of_it(tmp_path: Path) -> None:
    (fault,) = read_packed(str(tmp_path / "a.tar"), None, range(3, 9))
    assert isinstance(fault, Fault)


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        ([("x.png", IMAGE)], "x", "has no .txt beside its image"),
        ([("x.txt", b"a caption")], "x", "has no image"),
        ([("x.png", IMAGE), ("x.jpg", IMAGE), ("x.txt", b"a caption")], "x", "has both .png and .jpg"),
        ([("x.png", IMAGE), ("x.txt", b" \n")], "x.txt", "holds no caption but ' \\n'"),
        ([("x.png", IMAGE), ("x.txt", b"\xff\xfe")], "x.txt", "holds no caption (UnicodeDecodeError"),
        ([*good("x"), *good("x")], "x.png", "occurs twice in its shard"),
        (good("a"), "a", "occurs twice in its shard, in different places"),
        (good("../x"), "../x.png", "leads out of its shard"),
        (good("/etc/x"), "/etc/x.png", "leads out of its shard"),
        (good("x/../../y"), "x/../../y.png", "leads out of its shard"),
        ([(special("../up", tarfile.DIRTYPE), b"")], "../up", "leads out of its shard"),
        ([(special("x.png", tarfile.SYMTYPE, "/etc/passwd"), b""), ("x.txt", b"t")], "x.png", "is a link"),
        ([(special("x.png", tarfile.LNKTYPE, "a.png"), b""), ("x.txt", b"t")], "x.png", "is a link"),
        ([(special("x.png", tarfile.CHRTYPE), b"")], "x.png", "is a link, a device"),
        ([(special("x.png", tarfile.FIFOTYPE), b"")], "x.png", "is a link, a device"),
        ([("README", b"text")], "README", "has no image"),
    ],
)
def test_each_fault_is_named_and_leaves_its_neighbours_alone(
    tmp_path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], key: str, reason: str
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    shard = packed(tmp_path / "a.tar", [*good("a"), *good("b"), *members, *good("c")])
    keys, faults = read(shard)
    assert keys == ["a", "b", "c"]
    assert [(fault.shard, fault.key) for fault in faults] == [(str(shard), key)]
    assert faults[0].reason.startswith(reason)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path != shard} == before


def test_json_without_the_entry_or_nested_without_end_is_a_fault(tmp_path: Path) -> None:
    for content in (b"{}", b"[" * 100_000):
        shard = packed(tmp_path / "a.tar", [("a.png", IMAGE), ("a.json", content)])
        _, (fault,) = read(shard, "text")
        assert (fault.key, "an entry 'text' (caption_key says which)" in fault.reason) == ("a.json", True)


def test_folders_hidden_members_and_webdatasets_own_are_no_samples(tmp_path: Path) -> None:
    others = [(special("folder", tarfile.DIRTYPE), b""), ("folder/._a.png", b"mac"), ("__index__/0.json", b"{}")]
    assert read(packed(tmp_path / "a.tar", [*others, *good("folder/a")])) == (["folder/a"], [])


def truncate(shard: Path, size: int) -> None:
    shard.write_bytes(shard.read_bytes()[:size])


def damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        third = archive.getmember("c.png").offset
    content[third : third + 8] = b"\xff" * 8
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "keys", "reason"),
    [
        (lambda shard: truncate(shard, 0), [], "is no intact tar (empty file)"),
        (lambda shard: truncate(shard, 512 + 100), [], "is no intact tar"),
        (
            lambda shard: truncate(shard, 2 * (512 + 512 + 512 * -(-len(IMAGE) // 512) + 512)),
            ["a", "b"],
            "is no intact",
        ),
        (damage, ["a", "b"], "is no intact tar (expected a header or its end"),
        (lambda shard: shard.write_bytes(gzip.compress(shard.read_bytes())), [], "is compressed"),
        (lambda shard: shard.write_bytes(bytes(10240)), [], "holds no sample"),
        (Path.unlink, [], "cannot be read (FileNotFoundError"),
    ],
    ids=["empty", "in the first member", "between samples", "damaged header", "gzip", "no member", "missing"],
)
def test_a_damaged_shard_gives_what_comes_before_and_one_fault(
    tmp_path: Path, harm: Callable[[Path], object], keys: list[str], reason: str
) -> None:
    shard = packed(tmp_path / "a.tar", [*good("a"), *good("b"), *good("c")])
    harm(shard)
    found, faults = read(shard)
    assert found == keys
    assert [(fault.key, fault.reason.startswith(reason)) for fault in faults] == [("", True)], faults


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(2048))
    _, (fault,) = read(tmp_path / "a.tar")
    assert "goes on past the end" in fault.reason


def test_names_are_expanded_and_folders_listed(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [1, 1, 1])
    assert list_shards([f"{tmp_path}/{{000..002}}.tar"]) == list_shards([str(tmp_path)]) == tuple(shards)
    assert list_shards(["https://host/a-{0..1}.tar"]) == ("https://host/a-0.tar", "https://host/a-1.tar")


@pytest.mark.parametrize(
    "name", ["pipe:cat a.tar", "gs://bucket/a.tar", "file:///a.tar", "-", "", " pipe:a", "{a,pipe:b}"]
)
def test_nothing_but_paths_and_web_addresses_is_a_shard(name: str) -> None:
    with pytest.raises(ValueError, match="is no shard that is read here"):
        list_shards([name])


def test_a_shard_that_is_named_twice_and_no_shard_at_all_are_refused(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [1])
    with pytest.raises(ValueError, match=r"000\.tar is named twice"):
        list_shards([shard, str(tmp_path)])
    with pytest.raises(ValueError, match="no shard is named"):
        list_shards([])


def test_a_shards_identity_has_no_secrets_of_its_address(tmp_path: Path) -> None:
    assert identity("https://host/path/a.tar?token=secret#x") == ("a.tar", None)
    (shard,) = write_shards(tmp_path, [1])
    assert identity(shard) == ("000.tar", Path(shard).stat().st_size)
