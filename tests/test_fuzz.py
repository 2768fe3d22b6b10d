"""Whatever happens to a file, its reader refuses it with a ValueError or gives what was written.

``pytest tests/test_fuzz.py --hypothesis-profile thorough`` tries 1,000 damages of each kind of file. What it found is
tried each time.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from callbacks.checkpoint import AtomicCheckpointIO
from snapgen_pl.__main__ import main
from snapgen_pl.checkpoints import LAST, read, step_of
from snapgen_pl.config_files import check_config, load_config, locate
from snapgen_pl.data.latents import FORMAT, Latents
from snapgen_pl.data.shards import MANIFEST
from snapgen_pl.export import folder as exported
from snapgen_pl.runs import Run
from snapgen_pl.trained_run import TrainedRun
from tests import tiny_cli, tiny_run
from tests.damage import JSON, damaged_bytes, damaged_json
from tests.data.test_latents import write as write_latents

CHECKPOINT = {
    "global_step": 7,
    "images_seen": 56,
    "state_dict": {"denoiser.weight": torch.arange(40.0), "conditioner.weight": torch.ones(3)},
    "ema": {"weights": {"denoiser.weight": torch.arange(40.0) / 2}},
    "config": "name: tiny\n",
}
START = {
    "step": 0,
    "seed": 7,
    "data": {"fingerprint": "abc", "classes": ["cat", "dog"], "training_images": 5, "validation_images": 5},
    "teacher": None,
}
EXPORT = {
    "kind": exported.KIND,
    "run": "tiny",
    "checkpoint": LAST,
    "step": 7,
    "weights": "EMA",
    "decoder": {},
    "classes": ["cat", "dog"],
    "num_classes": 2,
    "encoders": {"clip": {"tokenizer": "CLIPTokenizer", "tokens": 77, "truncate": True, "identity": "abc"}},
    "graphs": {"denoiser": {"files": {"onnx/denoiser.onnx": 3}, "parameters": 9}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Whatever else is raised is a finding."""
    with contextlib.suppress(ValueError):
        yield


def saved(folder: Path) -> bytes:
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, folder / "whole.ckpt")
    return (folder / "whole.ckpt").read_bytes()


@given(data=st.data())
def test_a_checkpoint_of_damaged_bytes_is_refused_or_what_was_written(folder: Path, data: st.DataObject) -> None:
    path = folder / LAST
    path.write_bytes(data.draw(damaged_bytes(saved(folder))))
    with refusing():
        assert step_of(path) >= 0
    with refusing():
        assert tiny_run.differing(read(path), CHECKPOINT) == []


@given(content=damaged_json({key: value for key, value in CHECKPOINT.items() if key != "state_dict"}) | JSON)
def test_a_checkpoint_of_other_content_is_refused_or_has_counts_and_weights(folder: Path, content: Any) -> None:
    path = folder / LAST
    torch.save(content, path)
    run = TrainedRun(folder, {}, path)
    with refusing():
        assert step_of(path) >= 0
    with refusing():
        assert run.images_seen >= 0
    with refusing():
        assert all(isinstance(weight, torch.Tensor) for weight in run.weights().values())


@given(content=damaged_json({"starts": [START, START]}))
def test_a_runs_manifest_is_refused_or_has_classes(folder: Path, content: Any) -> None:
    run = Run(folder)
    run.manifest.write_text(json.dumps(content))
    with refusing():
        assert run.starts()
    with refusing():
        assert all(isinstance(name, str) for name in TrainedRun(folder, {}, folder / LAST).classes())


@given(data=st.data())
def test_a_runs_manifest_of_damaged_bytes_is_refused_or_has_classes(folder: Path, data: st.DataObject) -> None:
    whole = json.dumps({"starts": [START]}).encode()
    Run(folder).manifest.write_bytes(data.draw(damaged_bytes(whole) | st.just(b"[" * 100_000)))
    with refusing():
        assert all(isinstance(name, str) for name in TrainedRun(folder, {}, folder / LAST).classes())


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents") / "whole")


def read_latents(folder: Path) -> dict[str, Any]:
    """All that training would read."""
    source = Latents(str(folder))
    opened = source.open()
    source.check()
    content: dict[str, Any] = {"classes": opened.classes}
    for name, images in (("train", opened.train), ("validation", opened.validation)):
        count = len(images)
        content[name] = [images.labels, *images.load(range(count), [False] * count)]  # type: ignore[union-attr, arg-type]
    return content


def check_latents(whole: Path, folder: Path, name: str, content: bytes) -> None:
    damaged = folder / "latents"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(whole, damaged)
    # Not in place: what has been mapped from a file must not change under its reader.
    (damaged / name).unlink()
    (damaged / name).write_bytes(content)
    with refusing():
        assert tiny_run.differing(read_latents(damaged), read_latents(whole)) == []


@given(data=st.data())
def test_a_shard_of_damaged_bytes_is_refused_or_what_was_written(
    latents: Path, folder: Path, data: st.DataObject
) -> None:
    name = "train-00001.safetensors"
    check_latents(latents, folder, name, data.draw(damaged_bytes((latents / name).read_bytes())))


@given(data=st.data())
def test_a_manifest_of_shards_is_refused_or_what_was_written(latents: Path, folder: Path, data: st.DataObject) -> None:
    whole = (latents / MANIFEST).read_bytes()
    changed = damaged_json(json.loads(whole)).map(lambda content: json.dumps(content).encode())
    check_latents(latents, folder, MANIFEST, data.draw(changed | damaged_bytes(whole)))


def test_latents_that_are_whole_are_read(latents: Path) -> None:
    assert json.loads((latents / MANIFEST).read_text())["format"] == FORMAT
    assert read_latents(latents)["train"][0].shape == (10,)


def open_export(folder: Path, content: Any) -> exported.ExportedRun:
    place = folder / "export"
    (place / "onnx").mkdir(parents=True, exist_ok=True)
    (place / "onnx" / "denoiser.onnx").write_bytes(b"abc")
    for graph in ("context", "decoder", "text_clip"):
        (place / "onnx" / f"{graph}.onnx").write_bytes(b"")
    (place / "config.yaml").write_text("model: {seed: 0}\n")
    (place / exported.MANIFEST).write_text(json.dumps(content))
    return exported.open_exported(str(place), "onnx")


@example({**EXPORT, "graphs": {"denoiser": {"files": {"../../config": 3}}}})
@example({**EXPORT, "encoders": {"../../clip": EXPORT["encoders"]["clip"]}})  # type: ignore[index]
@given(content=damaged_json(EXPORT))
def test_a_manifest_of_an_export_is_refused_or_says_what_it_is(folder: Path, content: Any) -> None:
    with refusing():
        run = open_export(folder, content)
        assert run.facts()["step"] == content["step"]
        assert all(isinstance(name, str) for name in run.classes())
        assert ".." not in json.dumps(run.config)


def test_an_export_that_is_whole_is_opened_and_one_that_leads_out_is_not(folder: Path) -> None:
    assert open_export(folder, EXPORT).classes() == ("cat", "dog")
    for name in ("../secret", "/etc/passwd", "onnx/../../secret", ""):
        with pytest.raises(ValueError, match="does not say what was exported"):
            open_export(folder, {**EXPORT, "graphs": {"denoiser": {"files": {name: 3}}}})


PIECES = st.sampled_from(
    ["a", "b: ", "- ", "? ", ": ", "&x ", "*x", "[", "]", "{", "}", ",", "\n", "  ", "!!int ", "2020-13-45"]
)


@example("? [a]\n: b\n")
@example("a: &x [*x]\n")
@example("a: &x {b: *x}\n")
@example("a: " + "[" * 3000)
@example("a: 2020-13-45\n")
@example("<<: 3\n")
@example("!!int :")
@given(text=st.text() | st.lists(PIECES, max_size=12).map("".join))
def test_a_config_of_any_text_is_refused_or_a_mapping(folder: Path, text: str) -> None:
    path = folder / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with refusing():
        assert isinstance(load_config(path), dict)
    with refusing():
        check_config(path)
        assert locate(path, "a") is None or "a" in text


@pytest.fixture(scope="module")
def printing(folder: Path) -> Callable[[Any], int]:
    """Has a command read a config, and gives its status."""
    path = folder / "changed.yaml"

    def status(content: Any) -> int:
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        try:
            return main(["fit", "--config", str(path), "--print_config"])
        except SystemExit as exit_:
            return int(exit_.code or 0)

    return status


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_command_accepts_a_changed_config_or_says_what_is_wrong(
    printing: Callable[[Any], int], folder: Path, data: st.DataObject
) -> None:
    whole = yaml.safe_load(Path(tiny_cli.config(folder)).read_text())
    assert printing(data.draw(damaged_json(whole))) in (0, 1, 2)
