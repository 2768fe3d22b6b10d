"""Which pictures are drawn for whom, and what their files are called."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

# plain: a file an image. geneval and dpg: what the evaluators of GenEval and of DPG-Bench read.
Layout: TypeAlias = Literal["plain", "geneval", "dpg"]

DPG_IMAGES = 4


class Prompt(NamedTuple):
    """What is asked for.

    Attributes:
        name: short, for files.
        text: a caption, or the name of a class.
        record: a line that an evaluator wants beside the images; None where none does.
    """

    name: str
    text: str
    record: str | None = None


class Picture(NamedTuple):
    """One file.

    Attributes:
        file: relative to the folder, with forward slashes.
        prompt: what it shows.
        positions: of the noise that its images are drawn from; several are set out in a square, row by row.
    """

    file: str
    prompt: Prompt
    positions: range


def read_prompts(path: Path, layout: Layout) -> list[Prompt]:
    """The prompts of a file, or of a folder.

    Args:
        path: plain takes a text file with a prompt a line, blank lines and those that begin with "#" aside; geneval its
            ``evaluation_metadata.jsonl``; dpg its folder of a ``.txt`` a prompt.
        layout: which.

    Raises:
        ValueError: where there are none, or a line is none.
    """
    try:
        prompts = {"plain": _plain, "geneval": _geneval, "dpg": _dpg}[layout](path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts {path} cannot be read for the layout {layout}: {error}") from error
    if not prompts:
        raise ValueError(f"prompts {path} holds no prompts; write one a line, or give another")
    return prompts


def named(text: str, index: int) -> Prompt:
    """A prompt whose files are called by its place in a list and its first words."""
    words = re.sub(r"\W+", "-", text)[:60].strip("-")
    return Prompt(f"{index:03d}-{words}", text)


def lay_out(prompts: Sequence[Prompt], layout: Layout, count: int) -> list[Picture]:
    """The files to draw.

    Args:
        prompts: what to ask for.
        layout: for whom.
        count: images a prompt.

    Raises:
        ValueError: for a count that the evaluator does not read.
    """
    if layout == "dpg":
        if count != DPG_IMAGES:
            raise ValueError(f"--count is {count}; DPG-Bench's files hold {DPG_IMAGES} images: leave --count at that")
        return [Picture(f"images/{prompt.name}.png", prompt, range(count)) for prompt in prompts]
    template = "{name}-{position:04d}.png" if layout == "plain" else "{name}/samples/{position:05d}.png"
    return [
        Picture(template.format(name=prompt.name, position=position), prompt, range(position, position + 1))
        for prompt in prompts
        for position in range(count)
    ]


def _plain(path: Path) -> list[Prompt]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [named(line, i) for i, line in enumerate(line for line in lines if line and not line.startswith("#"))]


def _geneval(path: Path) -> list[Prompt]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Prompt(f"{i:05d}", _geneval_text(path, i, line), line) for i, line in enumerate(lines) if line.strip()]


def _geneval_text(path: Path, index: int, line: str) -> str:
    try:
        return _checked(json.loads(line)["prompt"], f"line {index + 1} of {path}")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"line {index + 1} of {path} is no JSON object with a prompt ({error})") from error


def _dpg(path: Path) -> list[Prompt]:
    files = sorted(path.iterdir())
    return [
        Prompt(file.stem, _checked(file.read_text(encoding="utf-8"), str(file)))
        for file in files
        if file.suffix == ".txt"
    ]


def _checked(prompt: object, where: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} holds no prompt but {prompt!r}; write one")
    return prompt.strip()
