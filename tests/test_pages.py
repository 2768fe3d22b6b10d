"""What README and docs tell users to type works, and the tables they show are those the code makes."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.pages import PAGES, filled, pages
from snapgen_pl.__main__ import FUNCTION_VERBS, TRAINER_VERBS, main
from snapgen_pl.merged_config import merged_config
from snapgen_pl.tables.memory import Strategy, memory
from snapgen_pl.tables.table import Name, table
from snapgen_pl.trained_run import arguments

ROOT = Path(__file__).parents[1]
TEXT = "\n".join(pages().values())
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [words for line in LINES if (words := shlex.split(line, comments=True))]
# Those of a run need one: tests/test_experiments.py has the configurations that they name.
OURS = {
    " ".join(words): words[words.index("-m") + 2 :]
    for words in COMMANDS
    if TRAINER_VERBS.keys() & {*words} and "--config" in words and "--run" not in words
}.values()


def test_they_show_commands_of_every_verb() -> None:
    for verb in (*TRAINER_VERBS, *FUNCTION_VERBS):
        assert f"python -m snapgen_pl {verb}" in TEXT


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
def test_what_they_train_on_eight_gpus_fits_their_80_gib(words: list[str]) -> None:
    given = dict(pairwise(words))
    files = [str(ROOT / file) for flag, file in pairwise(words) if flag == "--config"]
    images = arguments(merged_config([Path(file) for file in files])["data"])["batch_size"]
    assert isinstance(images, int)
    each, rest = divmod(images, 8 * int(given.get("--trainer.accumulate_grad_batches", 1)))
    strategy: Strategy = "ddp" if given["--trainer.strategy"] == "ddp" else "fsdp2"
    rows = json.loads(memory(files, gpus=8, strategy=strategy, batch=each, format="json"))
    (held,) = [row["gib_per_gpu"] for row in rows if row["part"] == f"all, at a micro-batch of {each}"]
    assert rest == 0
    assert held < 80


def test_their_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {words[1] for words in COMMANDS if words[0] == "make"} <= targets


@pytest.mark.parametrize("name", get_args(Name))
def test_their_tables_are_those_that_the_code_makes(name: Name) -> None:
    assert table(name, "md") in TEXT, "run `python -m benchmarks.pages`"


def test_the_tests_that_they_name_exist_and_are_slow_where_they_say_so() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) > 10
    for row in rows:
        for name in re.findall(r"`(tests/[^`]+)`", row):
            slow = "pytestmark = pytest.mark.slow" in (ROOT / name).read_text()
            assert slow <= ("\\*" in row), row


def test_the_tables_are_put_between_their_marks() -> None:
    mark = re.compile(r"(<!-- table \w+ -->\n).*?(\n<!-- end -->)", re.DOTALL)
    emptied = {path: mark.sub(r"\1old\2", text) for path, text in pages().items()}
    assert emptied != pages()
    assert filled(emptied) == pages()
    with pytest.raises(ValueError, match="README and docs have 0 places for the table imagenet256"):
        filled({PAGES[0]: ""})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_its_links_lead_to_what_exists(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, link


def test_the_readme_leads_to_every_page() -> None:
    readme = pages()[PAGES[0]]
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in readme
