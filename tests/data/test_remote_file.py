"""Files and shards on a web server, whose connections break."""

from pathlib import Path

import pytest

from snapgen_pl.data import remote_file
from snapgen_pl.data.faults import Fault
from snapgen_pl.data.remote_file import RemoteFile
from snapgen_pl.data.tar_samples import read_packed
from tests.shards import served, write_shards

CONTENT = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_WAITS_S", (0.0,) * 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    write_shards(tmp_path, [12])
    return tmp_path


def test_a_shard_is_read_as_from_the_disk(folder: Path) -> None:
    with served(folder) as server:
        remote = list(read_packed(f"{server.url}/000.tar?token=1", None))
        late = list(read_packed(f"{server.url}/000.tar", None, range(9, 99)))
    local = list(read_packed(str(folder / "000.tar"), None))
    assert [item[1:] for item in remote] == [item[1:] for item in local]
    assert [item[1:] for item in late] == [item[1:] for item in local[9:]]
    assert not any(isinstance(item, Fault) for item in local)


@pytest.mark.parametrize("ranges", [True, False])
def test_reading_goes_on_where_a_connection_broke(folder: Path, ranges: bool) -> None:
    with served(folder) as server:
        server.drops, server.ranges = 3, ranges
        with pytest.warns(UserWarning, match=r"/file cannot be read from byte \d+ on .*; trying again"):
            content = RemoteFile(f"{server.url}/file").readall()
    assert content == CONTENT
    half, three_quarters = len(CONTENT) // 2, len(CONTENT) // 2 + len(CONTENT) // 4
    assert server.asked[:3] == [0, half, three_quarters if ranges else half]


@pytest.mark.parametrize("ranges", [True, False])
def test_seeking_finds_the_bytes(folder: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_STEP", 5000)
    with served(folder) as server:
        server.ranges = ranges
        file = RemoteFile(f"{server.url}/file")
        assert file.length == len(CONTENT)
        for offset in (100, 3000, 500_003, 7, len(CONTENT) - 5, len(CONTENT) + 5):
            file.seek(offset)
            assert file.read(9) == CONTENT[offset : offset + 9]
    assert server.asked == [0, 500_003, 7, len(CONTENT) - 5]


def test_a_shard_that_is_not_there_is_one_fault(folder: Path) -> None:
    with served(folder) as server:
        shard = f"{server.url}/nowhere.tar"
        found = list(read_packed(shard, None))
        assert server.asked == []
    assert found == [Fault(shard, "", "cannot be read from byte 0 on (HTTPError: HTTP Error 404: Not Found)")]


@pytest.mark.filterwarnings("ignore:.*trying again")
def test_a_server_that_comes_no_further_costs_the_rest_of_the_shard_and_one_fault(folder: Path) -> None:
    with served(folder) as server:
        server.wall = (folder / "000.tar").stat().st_size // 2
        found = list(read_packed(f"{server.url}/000.tar", None))
    whole = list(read_packed(str(folder / "000.tar"), None))
    assert [item[1:] for item in found[:-1]] == [item[1:] for item in whole[: len(found) - 1]]
    assert 0 < len(found) - 1 < len(whole)
    assert isinstance(found[-1], Fault)
    assert "the server closed the connection early" in found[-1].reason


@pytest.mark.filterwarnings("ignore:.*trying again")
def test_a_server_that_is_gone_is_one_fault(folder: Path) -> None:
    with served(folder) as server:
        shard = f"{server.url}/000.tar"
    (fault,) = read_packed(shard, None)
    assert isinstance(fault, Fault)
    assert (fault.shard, fault.key, "refused" in fault.reason) == (shard, "", True)


def test_a_file_that_changes_under_the_reader_is_not_read_on(folder: Path) -> None:
    with served(folder) as server:
        file = RemoteFile(f"{server.url}/file")
        file.seek(len(CONTENT) - 3)
        (folder / "file").write_bytes(CONTENT + b"more")
        file._disconnect()
        with (
            pytest.warns(UserWarning, match="trying again"),
            pytest.raises(OSError, match=f"it had {len(CONTENT)} bytes, and now has {len(CONTENT) + 4}"),
        ):
            file.read(3)
