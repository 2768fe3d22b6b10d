import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from snapgen_pl.__main__ import main
from snapgen_pl.tables.table import Name
from tests.tiny_cli import CLASSES, config, delta


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps; to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["fit", "--config", config(folder)]) == 0
    return folder / "runs" / "tiny"


def fails(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> str:
    """What a command that fails prints as its error."""
    assert main(words) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "usage:" not in error
    return error


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def copied(trained: Path, folder: Path) -> Path:
    run = folder / "runs" / "tiny"
    for name, content in snapshot(trained).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model: {denoiser: {widht: 3}}",
            "model.denoiser.widht: tests.tiny_cli.Net takes no such argument; did you mean width",
        ),
        ("model: {denoiser: {width: abc}}", "model.denoiser.width: expected int, got 'abc'"),
        (
            "model: {denoiser: {class_path: tests.tiny_cli.Nett}}",
            "module tests.tiny_cli has no class Nett; did you mean Net?",
        ),
        ("model:\n  class_path: tests.tiny_cli.Tinny", "module tests.tiny_cli has no class Tinny; did you mean Tiny?"),
        ("model: {class_path: nowhere.Tiny}", "No module named 'nowhere'"),
        ("model: {denoiser: {stages: [{channels: 2}, {kind: wide}]}}", "expected 'plain' or 'separable', got 'wide'"),
        ("model: {denoiser: {stages: [{chanels: 3}]}}", "stages.chanels: tests.tiny_cli.Stage takes no such argument"),
        ("modle: {denoiser: {width: 3}}", "modle: no such key; did you mean model?"),
        ("trainer: {max_stepz: 3}", "trainer.max_stepz: no such key; did you mean max_steps"),
        ("ema: {half_live_images: 3}", "ema.half_live_images: no such key; did you mean half_life_images"),
    ],
)
def test_a_wrong_config_is_told_in_a_line_with_file_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    other = delta(tmp_path, text)
    error = fails(capsys, 2, "fit", "--config", config(tmp_path), "--config", other)
    assert said in error
    assert f"({other}:" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_line_named_is_the_one_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "model:\n  init_args:\n    denoiser:\n      stages:\n      - kind: plain\n      - kind: wide\n"
    other = delta(tmp_path, text)
    assert f"({other}:6)" in fails(capsys, 2, "fit", "--config", config(tmp_path), "--config", other)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--model.denoiser.widht=3",
            "model.denoiser.widht: tests.tiny_cli.Net takes no such argument; did you mean width",
        ),
        ("--trainer.max_stepz=3", "trainer.max_stepz: no such key; did you mean max_steps"),
    ],
)
def test_a_wrong_flag_is_told_without_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, said: str
) -> None:
    error = fails(capsys, 2, "fit", "--config", config(tmp_path), flag)
    assert said in error
    assert "yaml:" not in error


def test_a_missing_name_is_told_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name: is required: write `name: ...`" in fails(capsys, 2, "fit", "--config", config(tmp_path, name=None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {\n a: [", "delta.yaml:2:6: broken YAML"),
        ("trainer:\n  max_steps: 3\n  devices: 1\n  max_steps: 4\n", "delta.yaml:4: `max_steps` is given twice"),
        ("- 1\n", "delta.yaml: a config is a mapping"),
    ],
)
def test_a_broken_file_is_told_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    assert said in fails(capsys, 2, "fit", "--config", config(tmp_path), "--config", delta(tmp_path, text))


def test_an_unknown_verb_and_no_verb_are_answered_without_lightning() -> None:
    code = "import sys; from snapgen_pl.__main__ import main; print(main([]), main(['fti']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "generate" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 2 False"
    assert "did you mean fit?" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {denoiser: {width: 200}}", "width is 200; it must be at most 100"),
        ("data: {folder: /nowhere}", "data.folder /nowhere does not exist; give a folder of images"),
        ("ema: {ramp_up: 2.0}", "ramp_up must be in (0, 1], got 2.0"),
        ("trainer: {max_steps: -1}", "the run would never end: set trainer.max_steps"),
        ("trainer: {default_root_dir: /tmp}", "set --runs and --name instead"),
        ("name: ../elsewhere", "give a folder below --runs"),
    ],
)
def test_what_constructors_and_setup_refuse_is_told_in_a_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    error = fails(capsys, 1, "fit", "--config", config(tmp_path), "--config", delta(tmp_path, text))
    assert error.startswith("python -m snapgen_pl fit: error: ")
    assert said in error
    assert "Union" not in error


def test_debugging_lets_exceptions_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPGEN_DEBUG", "1")
    with pytest.raises(ValueError, match="width is 200"):
        main(["fit", "--config", config(tmp_path), "--model.denoiser.width=200"])


def test_a_run_leaves_its_configuration_checkpoint_manifest_and_curves(trained: Path) -> None:
    names = {file.name.split(".1")[0] for file in trained.iterdir()}
    files = {"config.yaml", "manifest.json", "last.ckpt", "autoencoder.safetensors", "events.out.tfevents", ".lock"}
    assert names == files
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["model"]["init_args"]["denoiser"] == {
        "class_path": "tests.tiny_cli.Net",
        "init_args": {"width": 8, "stages": []},
    }
    # Null is not the default of Lightning's own parser, so it has to be written.
    assert saved["trainer"]["check_val_every_n_epoch"] is None
    assert saved["trainer"]["use_distributed_sampler"] is False
    assert saved["seed_everything"] == 0


def test_the_saved_configuration_starts_the_same_run(trained: Path, tmp_path: Path) -> None:
    words = ["fit", "--config", str(trained / "config.yaml"), "--runs", str(tmp_path)]
    assert main(words) == 0
    first, again = (torch.load(folder / "last.ckpt")["state_dict"] for folder in (trained, tmp_path / "tiny"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_tensorboard_has_configuration_hyperparameters_and_layout(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    assert events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].startswith(b"```yaml")
    plugins = events.PluginTagToContent("hparams")
    session = plugins["_hparams_/session_start_info"]
    assert b"model.denoiser.width" in session
    assert b"kid_effnet" in plugins["_hparams_/experiment"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert [event.step for event in events.Scalars("val/loss")] == [1]
    assert "epoch" not in events.Tags()["scalars"], "always 0, for a run is one endless epoch"


def test_a_run_is_not_started_over(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(trained)
    error = fails(capsys, 1, "fit", "--config", config(trained.parent.parent))
    assert f"run {trained} exists (step 3); continue it with --ckpt_path last or choose another --name" in error
    assert snapshot(trained) == before


def test_a_run_continues_where_it_stopped(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(trained, tmp_path)
    before = (run / "config.yaml").read_bytes()
    assert main(["fit", "--config", config(tmp_path), "--ckpt_path", "last", "--trainer.max_steps", "5"]) == 0
    printed = capsys.readouterr().out
    assert f"continuing {run / 'last.ckpt'} at step 3" in printed
    assert "trainer.max_steps: 3 -> 5" in printed
    assert torch.load(run / "last.ckpt")["global_step"] == 5
    assert (run / "config.yaml").read_bytes() == before
    assert yaml.safe_load((run / "config-3.yaml").read_text())["trainer"]["max_steps"] == 5


def test_curves_hold_each_step_once_though_a_session_was_killed(tmp_path: Path) -> None:
    words = ["--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=2"]
    assert main(["fit", "--config", config(tmp_path), *words]) == 0
    run = tmp_path / "runs" / "tiny"
    # As if killed after step 3, the checkpoint being of step 2.
    (run / "previous.ckpt").replace(run / "last.ckpt")
    assert main(["fit", "--run", str(run), "--trainer.max_steps=5", "--trainer.val_check_interval=1"]) == 0
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    assert [event.step for event in events.Scalars("val/loss")] == [1, 2, 3, 4]
    assert len(events.Tensors("config/text_summary")) == 1


def test_a_continued_run_keeps_its_settings(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(trained, tmp_path)
    before = snapshot(run)
    error = fails(capsys, 1, "fit", "--run", str(run), "--model.learning_rate=0.5", "--trainer.max_steps=5")
    assert "  model.init_args.learning_rate: 1e-05 -> 0.5\n" in error
    assert f"--name NEW --ckpt_path {run / 'last.ckpt'}" in error
    assert "max_steps" not in error
    assert snapshot(run) == before


def test_a_run_is_continued_elsewhere_with_other_settings(trained: Path, tmp_path: Path) -> None:
    before = snapshot(trained)
    start = str(trained / "last.ckpt")
    words = ["--ckpt_path", start, "--model.learning_rate=0.5", "--trainer.max_steps=4"]
    assert main(["fit", "--config", config(tmp_path, name="tuned"), *words]) == 0
    assert torch.load(tmp_path / "runs" / "tuned" / "last.ckpt")["global_step"] == 4
    assert snapshot(trained) == before


def test_nothing_to_continue_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (("last", "the run has saved none yet"), ("nowhere.ckpt", "no checkpoint at nowhere.ckpt")):
        error = " ".join(fails(capsys, 1, "fit", "--config", config(tmp_path), "--ckpt_path", given).split())
        assert f"{said}; leave --ckpt_path out to start a run" in error
    assert not (tmp_path / "runs").exists()


def test_a_truncated_checkpoint_is_named_with_the_one_before(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained, tmp_path)
    last, previous = run / "last.ckpt", run / "previous.ckpt"
    previous.write_bytes(last.read_bytes())
    last.write_bytes(last.read_bytes()[:-1000])
    words = ("fit", "--config", config(tmp_path), "--ckpt_path")
    error = fails(capsys, 1, *words, "last")
    assert str(last) in error
    assert str(previous) in error
    assert main([*words, str(previous), "--trainer.max_steps=4"]) == 0
    assert torch.load(last)["global_step"] == 4


def test_other_verbs_take_a_run_and_leave_it_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(trained)
    assert main(["validate", "--run", str(trained)]) == 0
    assert f"validate from {trained / 'last.ckpt'}" in capsys.readouterr().out
    assert main(["predict", "--run", str(trained), "--trainer.limit_predict_batches", "1"]) == 0
    after = snapshot(trained)
    assert {name: after[name] for name in before} == before
    # Its scalars are curves of their own.
    assert all(name.startswith("validate/events.out.tfevents") for name in after.keys() - before.keys())


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_where_a_run_was_trained_binds_nobody_who_looks_at_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    places: dict[str, object] = {"num_nodes": 2, "devices": 8, "strategy": "ddp"}
    free: dict[str, object] = {"num_nodes": 1, "devices": "auto", "strategy": "auto"}
    content["trainer"] |= places
    file.write_text(yaml.safe_dump(content))
    overrides: list[dict[str, object]] = [{}, {"devices": 3}]
    for given in overrides:
        words = [f"--trainer.{name}={value}" for name, value in given.items()]
        with pytest.raises(SystemExit, match="0"):
            main([verb, "--run", str(file.parent), *words, "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
        expected = {**(places if verb == "fit" else free), **given}
        assert {name: str(printed[name]) for name in expected} == {name: str(value) for name, value in expected.items()}


def test_print_config_shows_every_default_and_the_command_line_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", config(tmp_path), "--model.seed=7", "--ema.ramp_up=0.5", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["seed"] == 7
    assert printed["model"]["init_args"]["sampler"] == {"steps": 2}
    assert printed["ema"]["ramp_up"] == 0.5
    assert "logger" in printed["trainer"]


def test_generate_draws_the_averaged_weights(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(trained)
    words = ["generate", "--run", str(trained), "--count", "2", "--batch_size", "3"]
    assert main([*words, "--classes", "red apple, noto, cat", "--out", str(tmp_path / "two")]) == 0
    assert "4 images" in capsys.readouterr().out
    assert main([*words, "--classes", "cat", "--out", str(tmp_path / "one")]) == 0
    two, one = snapshot(tmp_path / "two"), snapshot(tmp_path / "one")
    assert set(two) == {
        "002-red-apple-noto-0000.png",
        "002-red-apple-noto-0001.png",
        "000-cat-0000.png",
        "000-cat-0001.png",
        "grid.png",
        "manifest.json",
    }
    # Whatever else is asked for, an image stays what it is.
    assert one["000-cat-0001.png"] == two["000-cat-0001.png"]
    assert Image.open(tmp_path / "two" / "grid.png").size == (8, 8)
    assert snapshot(trained) == before
    manifest = json.loads(two["manifest.json"])
    assert (manifest["step"], manifest["seed"], manifest["sampler"]) == (3, 0, {"steps": 2})
    assert [image["prompt"] for image in manifest["images"]] == ["red apple, noto"] * 2 + ["cat"] * 2
    for flag in ("--seed", "--steps"):
        assert main([*words, "--classes", "cat", flag, "9", "--out", str(tmp_path / flag)]) == 0
    assert snapshot(tmp_path / "--seed")["000-cat-0000.png"] != one["000-cat-0000.png"]


def test_generate_takes_the_average_and_not_the_raw_weights(trained: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    checkpoint = torch.load(run / "last.ckpt")
    words = ["generate", "--run", str(run), "--classes", "dog", "--count", "1", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0
    checkpoint["ema"]["weights"]["conditioner.weight"] += 1
    torch.save(checkpoint, run / "last.ckpt")
    assert main([*words, str(tmp_path / "b")]) == 0
    checkpoint["state_dict"]["conditioner.weight"] += 1
    torch.save(checkpoint, run / "last.ckpt")
    assert main([*words, str(tmp_path / "c")]) == 0
    a, b, c = (snapshot(tmp_path / name)["001-dog-0000.png"] for name in "abc")
    assert a != b == c


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "cta"], "no class 'cta' among the run's 3; did you mean cat?"),
        (["--classes", "cat, red aple, noto"], "no class 'red aple' among the run's 3; did you mean red apple, noto?"),
        (["--classes", ""], "no class ''"),
        (["--classes", "cat", "--count", "0"], "must be at least 1"),
        (["--classes", "cat", "--guidance", "3"], "no argument guidance.scale, so it cannot be set to 3.0"),
    ],
)
def test_generate_refuses_what_it_cannot_draw(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in fails(capsys, 1, "generate", "--run", str(trained), "--out", str(tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_generate_writes_nothing_where_the_weights_are_another_networks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained, tmp_path)
    checkpoint = torch.load(run / "last.ckpt")
    del checkpoint["ema"]["weights"]["conditioner.weight"], checkpoint["state_dict"]["conditioner.weight"]
    torch.save(checkpoint, run / "last.ckpt")
    words = ("generate", "--run", str(run), "--classes", "dog", "--out", str(tmp_path / "out"))
    assert "conditioner.weight" in fails(capsys, 1, *words)
    assert not (tmp_path / "out").exists()


def test_generate_writes_over_nothing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--run", str(trained), "--classes", CLASSES[0], "--out", str(trained))
    assert "is not an empty folder" in fails(capsys, 1, *words)
    words = ("generate", "--run", str(tmp_path), "--classes", CLASSES[0], "--out", str(tmp_path / "out"))
    assert "no run there" in fails(capsys, 1, *words)


def test_a_verb_without_configs_tells_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "error: name: is required\n" in fails(capsys, 2, "table")
    wanted = " or ".join(repr(name) for name in get_args(Name))
    assert f"error: name: expected {wanted}, got 'ablatoin'\n" in fails(capsys, 2, "table", "ablatoin")


def test_generate_tells_a_misspelt_flag(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, 2, "generate", "--run", "r", "--classes", "a", "--out", "o", "--cuont", "3")
    assert "cuont: no such key; did you mean count" in error


@pytest.mark.slow
def test_two_processes_train_and_continue_one_run(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "snapgen_pl", "fit", "--trainer.devices=2", "--trainer.strategy=ddp"]
    for words in (["--config", config(tmp_path)], ["--run", str(tmp_path / "runs/tiny"), "--trainer.max_steps=5"]):
        done = subprocess.run(command + words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    # Said once, by the first.
    assert done.stdout.count("continuing") == 1
    assert torch.load(tmp_path / "runs/tiny/last.ckpt")["global_step"] == 5
