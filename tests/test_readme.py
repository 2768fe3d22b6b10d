"""What the README tells users to type works, and the tables it shows are those the code makes."""

import json
import re
import shlex
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.readme import filled
from snapgen_pl.__main__ import FUNCTION_VERBS, TRAINER_VERBS, main
from snapgen_pl.config_files import load_config
from snapgen_pl.tables.memory import Strategy, memory, merged
from snapgen_pl.tables.table import Name, table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [words for line in LINES if (words := shlex.split(line, comments=True))]
# Those of a run need one: tests/test_experiments.py has the configurations that they name.
OURS = [
    words[words.index("-m") + 2 :]
    for words in COMMANDS
    if "snapgen_pl" in words and "--config" in words and "--run" not in words
]


def test_it_shows_commands_of_every_verb() -> None:
    for verb in (*TRAINER_VERBS, *FUNCTION_VERBS):
        assert f"python -m snapgen_pl {verb}" in README


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_command_with_a_config_parses(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my-changes.yaml").write_text("trainer: {max_steps: 10}\n")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([*(word for word in words if word not in ("--print_config", "--ckpt_path", "last")), "--print_config"])
    assert exit_.value.code in (0, None)
    assert "class_path: snapgen_pl.modules." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [words for words in OURS if words[0] == "fit" and "--trainer.devices 8" in " ".join(words)], ids=" ".join
)
def test_what_it_trains_on_eight_gpus_fits_their_80_gib(words: list[str]) -> None:
    given = dict(pairwise(words))
    files = [str(ROOT / file) for flag, file in pairwise(words) if flag == "--config"]
    images = reduce(merged, map(load_config, map(Path, files)), {})["data"]["init_args"]["batch_size"]
    each, rest = divmod(images, 8 * int(given.get("--trainer.accumulate_grad_batches", 1)))
    strategy: Strategy = "ddp" if given["--trainer.strategy"] == "ddp" else "fsdp2"
    rows = json.loads(memory(files, gpus=8, strategy=strategy, batch=each, format="json"))
    (held,) = [row["gib_per_gpu"] for row in rows if row["part"] == f"all, at a micro-batch of {each}"]
    assert rest == 0
    assert held < 80


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {words[1] for words in COMMANDS if words[0] == "make"} <= targets


@pytest.mark.parametrize("name", get_args(Name))
def test_its_tables_are_those_that_the_code_makes(name: Name) -> None:
    assert table(name, "md") in README, "run `python -m benchmarks.readme`"


def test_the_tests_that_it_names_exist_and_are_slow_where_it_says_so() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) > 10
    for row in rows:
        for name in re.findall(r"`(tests/[^`]+)`", row):
            slow = "pytestmark = pytest.mark.slow" in (ROOT / name).read_text()
            assert slow <= ("\\*" in row), row


def test_the_tables_are_put_between_their_marks() -> None:
    emptied = re.sub(r"(<!-- table \w+ -->\n).*?(\n<!-- end -->)", r"\1old\2", README, flags=re.DOTALL)
    assert emptied != README
    assert filled(emptied) == README
    with pytest.raises(ValueError, match="the README has 0 places for the table imagenet256"):
        filled("")


def test_it_links_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
