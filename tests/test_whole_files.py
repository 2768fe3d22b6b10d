import json
import os
from pathlib import Path

import pytest

from snapgen_pl.whole_files import whole_file, whole_folder, write_json


def test_a_file_is_what_it_was_until_its_successor_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"a": 1}, path)
    with whole_file(path) as part:
        part.write_text("half", encoding="utf-8")
        assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert path.read_text(encoding="utf-8") == "half"
    assert list(tmp_path.iterdir()) == [path]


def fail_halfway(path: Path) -> None:
    with whole_file(path) as part:
        part.write_text("half", encoding="utf-8")
        raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"a": 1}, path)
    with pytest.raises(OSError, match="disk full"):
        fail_halfway(path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_what_it_was_until_its_successor_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "export"
    for content in ("first", "second"):
        with whole_folder(path) as part:
            (part / content).write_text(content, encoding="utf-8")
            assert not (path / content).exists()
        assert [file.name for file in path.iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [path]


def fill_halfway(path: Path) -> None:
    with whole_folder(path) as part:
        (part / "half").write_text("half", encoding="utf-8")
        raise OSError("disk full")


def test_a_folder_that_failed_leaves_the_old_one_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.mkdir()
    (path / "whole").write_text("whole", encoding="utf-8")
    with pytest.raises(OSError, match="disk full"):
        fill_halfway(path)
    assert [file.name for file in path.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_private_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    path, mine = tmp_path / "export", tmp_path / "mine"
    mine.touch(0o600)
    before = os.umask(0o027)
    try:
        with whole_folder(path) as part:
            (part / "inner").mkdir(0o700)
            (part / "inner" / "weights").touch(0o600)
            (part / "script").touch(0o700)
            (part / "link").symlink_to(mine)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.rglob("*")}
    assert modes == {"inner": 0o750, "weights": 0o640, "script": 0o750, "link": 0o600}
