from pathlib import Path

import pytest
import torch

from snapgen_pl import experiments
from snapgen_pl.config_files import Difference, check_config, differences, flatten, locate
from snapgen_pl.runs import MAY_CHANGE, Run, Start, may_change, table

CONFIG = """\
name: quick
model:
  class_path: some.Model
  init_args:
    rate: 0.1
    net:
      class_path: some.Net
      init_args:
        stages:
        - {kind: plain, width: 1}
        - kind: wide
          width: 2
trainer.max_steps: 3
callbacks+:
- decay: 0.5
"""


def run_with(folder: Path, step: int, *names: str) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        torch.save({"global_step": step}, folder / name)
    return Run(folder)


def test_a_fresh_folder_starts_from_nothing_or_from_elsewhere(tmp_path: Path) -> None:
    run = Run(tmp_path / "new")
    assert run.start(None) == Start(None, 0, False)
    other = run_with(tmp_path / "other", 7, "last.ckpt")
    assert run.start(str(other.last)) == Start(other.last, 7, False)
    assert not run.folder.exists()


def test_a_used_folder_is_only_continued(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 7, "last.ckpt")
    other = run_with(tmp_path / "other", 9, "last.ckpt")
    assert run.start("last") == Start(run.last, 7, True)
    for ckpt_path in (None, str(other.last)):
        with pytest.raises(ValueError, match=r"exists \(step 7\); continue it with --ckpt_path last or choose another"):
            run.start(ckpt_path)


def test_the_same_folder_is_known_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(tmp_path / "runs" / "a", 7, "last.ckpt", "previous.ckpt")
    monkeypatch.chdir(tmp_path)
    assert Run(Path("runs/a")).start(str(tmp_path / "runs" / "a" / ".." / "a" / "previous.ckpt")).resumes


def test_a_kill_between_the_renames_of_a_save_loses_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path, 7, "previous.ckpt")
    assert run.start("last") == Start(tmp_path / "previous.ckpt", 7, True)
    with pytest.raises(ValueError, match="exists"):
        run.start(None)


def test_damaged_checkpoints_are_refused_and_never_overwritten(tmp_path: Path) -> None:
    run = run_with(tmp_path, 7, "last.ckpt")
    run.last.write_bytes(run.last.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last\.ckpt is truncated"):
        run.start("last")
    with pytest.raises(ValueError, match="its newest checkpoint is damaged"):
        run.start(None)


def test_a_file_without_training_state_is_no_start(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt holds no training state"):
        Run(tmp_path / "run").start(str(tmp_path / "other.ckpt"))


def test_sessions_write_their_own_configuration(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.write_config("a: 1\n", Start())
    run.write_config("a: 2\n", Start(run.last, 40, True))
    assert run.config.read_text() == "a: 1\n"
    assert (run.folder / "config-40.yaml").read_text() == "a: 2\n"
    assert len(list(run.folder.iterdir())) == 2


def test_only_what_leaves_the_computation_alone_may_change(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_config("trainer: {max_steps: 1, precision: 32}\nrate: 0.1\nname: a\ncheckpoint: {every: 1}\n", Start())
    changed = {"trainer": {"max_steps": 2, "precision": 32}, "rate": 0.1, "name": "b", "checkpoint": {"every": 9}}
    assert run.check_unchanged(changed) == [Difference("trainer.max_steps", 1, 2), Difference("checkpoint.every", 1, 9)]
    changed["rate"] = 0.2
    with pytest.raises(ValueError, match=r"  rate: 0\.1 -> 0\.2\n.*--name NEW") as refusal:
        run.check_unchanged(changed)
    assert "max_steps" not in str(refusal.value)


@pytest.mark.parametrize(
    "key", ["trainer.precision", "trainer.gradient_clip_val", "trainer.callbacks", "ema.ramp_up", "seed_everything"]
)
def test_what_changes_the_computation_may_not_change(key: str) -> None:
    assert not may_change(key)


def test_a_prefix_means_whole_names(tmp_path: Path) -> None:
    assert may_change("trainer.strategy.init_args.bucket")
    assert not may_change("trainer.max_steps_more")
    assert not any(first != second and first.startswith(second + ".") for first in MAY_CHANGE for second in MAY_CHANGE)


def test_a_run_without_its_configuration_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml is missing"):
        Run(tmp_path).check_unchanged({})


def test_differences_are_leaves_and_tables_are_aligned() -> None:
    old, new = {"a": {"b": 1, "c": [1, 2]}, "gone": 3}, {"a": {"b": 1, "c": [1, 3]}, "new": None, "added": {}}
    found = differences(old, new)
    assert found == [
        Difference("a.c", [1, 2], [1, 3]),
        Difference("added", None, {}),
        Difference("gone", 3, None),
    ]
    assert table(found) == "  a.c:   [1, 2] -> [1, 3]\n  added: None -> {}\n  gone:  3 -> None"
    assert flatten(old) == {"a.b": 1, "a.c": [1, 2], "gone": 3}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("name", None, 1),
        ("model", None, 2),
        ("model.rate", None, 5),
        ("model.net.stages", None, 9),
        ("model.net.stages.kind", None, 10),
        ("model.net.stages.kind", "wide", 11),
        ("model.net.stages.width", "2", 12),
        ("trainer.max_steps", None, 13),
        ("callbacks.decay", None, 15),
        ("model.net.depth", None, None),
    ],
)
def test_the_line_of_a_key_is_found(tmp_path: Path, key: str, value: str | None, line: int | None) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    check_config(tmp_path / "c.yaml")
    assert locate(tmp_path / "c.yaml", key, value) == line


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with two experiments, and a working directory elsewhere."""
    folder = tmp_path / "site" / "snapgen_pl" / "_experiments"
    (folder / "ablation").mkdir(parents=True)
    for name in ("quickstart.yaml", "ablation/full.yaml"):
        (folder / name).write_text("a: 1\n")
    monkeypatch.setattr(experiments, "_PACKAGE", folder.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_config_is_found_here_first_and_else_among_the_experiments(installed: Path) -> None:
    for name in ("experiments/quickstart.yaml", "quickstart.yaml"):
        assert experiments.find_config(name) == installed / "quickstart.yaml"
    assert experiments.find_config("experiments/ablation/full.yaml") == installed / "ablation" / "full.yaml"
    Path("quickstart.yaml").write_text("a: 2\n")
    assert experiments.find_config("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize("name", ["experiments/../../secret.yaml", "experiments/quikstart.yaml", "/no/quickstart.yaml"])
def test_a_config_that_is_nowhere_is_an_error(installed: Path, name: str) -> None:
    (installed.parent.parent / "secret.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match="no such file"):
        experiments.find_config(name)


def test_a_misspelt_experiment_is_told_its_name(installed: Path) -> None:
    with pytest.raises(ValueError, match=r"did you mean experiments/quickstart\.yaml\?"):
        experiments.find_config("experiments/quikstart.yaml")


def test_an_editable_install_finds_the_experiments_of_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "_PACKAGE", tmp_path / "snapgen_pl")
    with pytest.raises(ValueError, match="holds no experiments"):
        experiments.experiments_dir()
    (tmp_path / "experiments").mkdir()
    assert experiments.experiments_dir() == tmp_path / "experiments"


def test_a_folder_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    claim = run.claim()
    with pytest.raises(ValueError, match=r"another process is at work in .*run; wait for it, or choose another --name"):
        run.claim()
    claim.release()
    run.claim().release()
