"""DPG-Bench's questions, and what their answers are worth (Hu et al., ELLA, 2024)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")


class Question(NamedTuple):
    """A question about the image of a prompt, to be answered by yes or no.

    Attributes:
        number: of it among the prompt's.
        parents: numbers of those before it that must be answered by yes for it to count.
        category: what kind of thing it asks for.
        text: of the question.
    """

    number: int
    parents: tuple[int, ...]
    category: str
    text: str


def read_questions(path: Path) -> dict[str, tuple[Question, ...]]:
    """The questions of each prompt, by its text, white space made single blanks.

    Args:
        path: DPG-Bench's ``dpg_bench.csv``.

    Raises:
        ValueError: naming what is missing, no number, or asked for by a number that does not come before; and where one
            text has questions of two kinds.
    """
    items: dict[str, tuple[str, list[Question]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as opened:
            lines = csv.DictReader(opened)
            if missing := [column for column in _COLUMNS if column not in (lines.fieldnames or ())]:
                raise ValueError(f"it has no columns {', '.join(missing)}")
            for line in lines:
                text, questions = items.setdefault(line["item_id"], (unspaced(line["text"]), []))
                questions.append(_question(line, [question.number for question in questions]))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not DPG-Bench's dpg_bench.csv: {error}") from error
    found: dict[str, tuple[Question, ...]] = {}
    for item, (text, questions) in items.items():
        if found.setdefault(text, tuple(questions)) != tuple(questions):
            raise ValueError(f"{path}: the prompt of {item} has other questions elsewhere in the file; remove one")
    if not found:
        raise ValueError(f"{path} holds no questions; give DPG-Bench's dpg_bench.csv")
    return found


def score(questions: Sequence[Question], yes: Sequence[bool]) -> float:
    """The share of questions answered by yes, none of whose parents, or theirs, failed; in [0, 1].

    Args:
        questions: of one prompt.
        yes: their answers.
    """
    holds: dict[int, bool] = {}
    for question, answer in zip(questions, yes, strict=True):
        holds[question.number] = answer and all(holds[parent] for parent in question.parents)
    return sum(holds.values()) / len(holds)


def unspaced(text: str) -> str:
    """A text with its white space made single blanks: files of prompts and of questions differ in it."""
    return " ".join(text.split())


def _question(line: Mapping[str, str], before: Sequence[int]) -> Question:
    where = f"question {line['proposition_id']} of {line['item_id']}"
    number = int(line["proposition_id"])
    parents = tuple(parent for part in line["dependency"].split(",") if (parent := int(part)) != 0)
    if number in before or (late := [parent for parent in parents if parent not in before]):
        raise ValueError(f"{where} is there twice" if number in before else f"{where} depends on {late[0]}, unknown")
    if not (text := unspaced(line["question_natural_language"])):
        raise ValueError(f"{where} is empty")
    return Question(number, parents, line["category_broad"].strip(), text)
