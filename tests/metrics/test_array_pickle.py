import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_pl.metrics.array_pickle import read_arrays


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> object:
        return Path.touch, (self.file,)


def written(folder: Path, content: object, protocol: int | None = None) -> Path:
    path = folder / "arrays.ckpt"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_are_named_by_the_way_to_them(tmp_path: Path, protocol: int) -> None:
    kernel, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, dtype=np.float32)
    path = written(tmp_path, {"conv": {"kernel": np.asfortranarray(kernel), "bias": bias}, "head": bias}, protocol)
    found = read_arrays(path)
    assert list(found) == ["conv/kernel", "conv/bias", "head"]
    assert torch.equal(found["conv/kernel"], torch.arange(6.0).view(2, 3))


def test_pickles_of_numpy_1_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": np.ones(2, dtype=np.float32)}, 3)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(read_arrays(path)["a"], torch.ones(2))


@pytest.mark.parametrize("protocol", [3, 4])
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, protocol: int) -> None:
    planted = tmp_path / "planted"
    path = written(tmp_path, {"a": np.ones(2, dtype=np.float32), "b": Planted(planted)}, protocol)
    with pytest.raises(ValueError, match=r"arrays.ckpt cannot be read as arrays alone \(it names (pathlib|builtins)\."):
        read_arrays(path)
    assert not planted.exists()


@pytest.mark.parametrize(
    "code", [b"cos\nsystem\n(S'true'\ntR.", b"cnumpy\nload\n(S'a'\ntR.", b"cbuiltins\ngetattr\n.", b"\x82\x01."]
)
def test_code_that_is_no_array_is_refused(tmp_path: Path, code: bytes) -> None:
    path = tmp_path / "code.ckpt"
    path.write_bytes(code)
    with pytest.raises(ValueError, match=r"code.ckpt cannot be read as arrays alone"):
        read_arrays(path)


def test_attributes_of_what_is_allowed_are_not(tmp_path: Path) -> None:
    path = tmp_path / "code.ckpt"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(ValueError, match=r"it names numpy\.ndarray\.tofile"):
        read_arrays(path)


def test_other_contents_and_damage_are_named(tmp_path: Path) -> None:
    for content, said in (
        ({"a": {"b": np.ones(2)}}, "it holds f8 under 'a/b'"),
        ({"a": np.array([{}], dtype=object)}, "it holds O8 under 'a'"),
        ({"a": 1.0}, "it holds float under 'a'"),
        (np.ones(2, dtype=np.float32), "it holds f4 under ''"),
    ):
        with pytest.raises(ValueError, match=said):
            read_arrays(written(tmp_path, content))
    path = written(tmp_path, {"a": np.ones(200, dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="pickle data was truncated"):
        read_arrays(path)
    with pytest.raises(ValueError, match=r"none.ckpt cannot be read as arrays alone"):
        read_arrays(tmp_path / "none.ckpt")
