from pathlib import Path

import pytest
import torch

from snapgen_pl.metrics.feature_store import FeatureStore


def store(folder: Path, **identity: str) -> FeatureStore:
    return FeatureStore(folder, {"weights": "a", **identity}, count=10, chunk=4)


def test_chunks_cover_the_set_and_what_was_written_is_not_missing(tmp_path: Path) -> None:
    first = store(tmp_path)
    assert first.missing() == [range(4), range(4, 8), range(8, 10)]
    first.write(range(4, 8), {"x": torch.arange(4.0)[:, None] + 4})
    again = store(tmp_path)
    assert again.missing() == [range(4), range(8, 10)]
    assert store(tmp_path, weights="b").missing() == first._chunks
    for positions in again.missing():
        again.write(positions, {"x": torch.tensor(list(positions), dtype=torch.float32)[:, None]})
    assert torch.cat(list(again.read("x"))).flatten().tolist() == list(range(10))


def test_a_chunk_cut_short_or_gone_is_named(tmp_path: Path) -> None:
    whole = store(tmp_path)
    for positions in whole.missing():
        whole.write(positions, {"x": torch.zeros(len(positions), 3)})
    damaged = next(whole.folder.glob("00000004*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00000004\.safetensors: missing or damaged"):
        list(whole.read("x"))
    damaged.unlink()
    with pytest.raises(ValueError, match=r"00000004\.safetensors: missing or damaged"):
        list(whole.read("x"))


def test_a_chunk_whose_writing_broke_is_missing_still(tmp_path: Path) -> None:
    broken = store(tmp_path)
    with pytest.raises(RuntimeError):
        broken.write(range(4), {"x": torch.zeros(4, 3, device="meta")})
    assert broken.missing()[0] == range(4)
    broken.remove()
    assert not broken.folder.exists()
