"""GenEval's rules: what a prompt asks for, and whether what was found in an image is it (Ghosh et al., 2023).

Boxes are (left, top, right, bottom) in pixels, top left first.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import copysign, hypot
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from snapgen_pl.pictures import Prompt, read_prompts

Task: TypeAlias = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Relation: TypeAlias = Literal["left of", "right of", "above", "below"]
TASKS: tuple[Task, ...] = get_args(Task)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

# The published settings.
LEAST_SCORE, LEAST_SCORE_COUNTING = 0.3, 0.9
MOST_OBJECTS = 16  # of a class
POSITION_THRESHOLD = 0.1
RULES: Mapping[str, int | float] = {
    "least_score": LEAST_SCORE,
    "least_score_counting": LEAST_SCORE_COUNTING,
    "most_objects": MOST_OBJECTS,
    "position_threshold": POSITION_THRESHOLD,
}


@dataclass(frozen=True)
class Detection:
    """An object in an image.

    Attributes:
        name: of its class.
        score: how sure the detector is, in [0, 1].
        box: around the mask.
        mask_HW: bool, where it is.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask_HW: Tensor


@dataclass(frozen=True)
class Wanted:
    """Objects that a prompt asks for.

    Attributes:
        name: of their class.
        count: how many at least.
        colour: of them; None for any.
        position: where each must be, to each of which other wanted objects, by their place in the list; None for
            anywhere.
    """

    name: str
    count: int
    colour: str | None = None
    position: tuple[Relation, int] | None = None


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for.

    Attributes:
        task: the kind of prompt.
        prompt: its text.
        include: all of this is to be found.
        exclude: none of this is, not so many.
    """

    task: Task
    prompt: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()

    @property
    def names(self) -> set[str]:
        """All classes that it is about."""
        return {wanted.name for wanted in (*self.include, *self.exclude)}


# Colours of objects of a class in the image at hand.
SeeColours: TypeAlias = Callable[[str, Sequence[Detection]], Sequence[str]]


def read_specs(path: Path) -> list[Spec]:
    """What GenEval's ``evaluation_metadata.jsonl`` asks for.

    Raises:
        ValueError: naming a line that asks for nothing known here.
    """
    return [_spec(path, prompt) for prompt in read_prompts(path, "geneval")]


def kept(detections: Iterable[Detection], task: Task) -> dict[str, list[Detection]]:
    """The detections that count for a task, by class, the surest first."""
    least = LEAST_SCORE_COUNTING if task == "counting" else LEAST_SCORE
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda each: -each.score):
        of_class = found.setdefault(detection.name, [])
        if detection.score > least and len(of_class) < MOST_OBJECTS:
            of_class.append(detection)
    return found


def shows(spec: Spec, found: Mapping[str, Sequence[Detection]], see_colours: SeeColours) -> bool:
    """Whether an image is what a prompt asks for.

    Of each class, colours and places are those of the surest objects, as many as are wanted.

    Args:
        spec: what is asked for.
        found: see :func:`kept`.
        see_colours: tells the colours of objects; asked only where they matter.
    """
    groups: list[Sequence[Detection] | None] = []
    for wanted in spec.include:
        surest = found.get(wanted.name, ())[: wanted.count]
        groups.append(surest if _matches(wanted, surest, groups, see_colours) else None)
    # A class with too many fails where there is no such clause: only `exclude` says how many are too many.
    crowded = any(len(found.get(wanted.name, ())) >= wanted.count for wanted in spec.exclude)
    return all(group is not None for group in groups) and not crowded


def relations(box: Sequence[float], other: Sequence[float]) -> set[Relation]:
    """How a box lies to another one: by their centres, less a tenth of their sizes' sum, over the centres' distance.

    A relation holds where that is over 1/2: at slants, two may.
    """
    offset, revised = [], []
    for low, high in ((0, 2), (1, 3)):
        difference = (box[low] + box[high] - other[low] - other[high]) / 2
        sizes = abs(box[high] - box[low]) + abs(other[high] - other[low])
        offset.append(difference)
        revised.append(copysign(max(abs(difference) - POSITION_THRESHOLD * sizes, 0), difference))
    if all(abs(value) < 1e-3 for value in revised):
        return set()
    across, down = (value / hypot(*offset) for value in revised)
    holds = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {relation for relation in RELATIONS if holds[relation]}


def _matches(
    wanted: Wanted,
    surest: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    see_colours: SeeColours,
) -> bool:
    if len(surest) < wanted.count:
        return False
    if wanted.colour is not None and list(see_colours(wanted.name, surest)).count(wanted.colour) < wanted.count:
        return False
    if wanted.position is None:
        return True
    relation, target = wanted.position
    others = groups[target]
    return others is not None and all(relation in relations(each.box, other.box) for each in surest for other in others)


def _spec(path: Path, prompt: Prompt) -> Spec:
    record = json.loads(prompt.record or "")
    try:
        include = tuple(_wanted(entry, place) for place, entry in enumerate(record["include"]))
        exclude = tuple(_wanted(entry, 0) for entry in record.get("exclude", ()))
        if record["tag"] not in TASKS or not include:
            raise ValueError(f"its tag is {record['tag']!r}, of {len(include)} objects")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: the line of {prompt.text!r} is none of GenEval's ({error}); give its evaluation_metadata.jsonl"
        ) from error
    return Spec(record["tag"], prompt.text, include, exclude)


def _wanted(entry: Mapping[str, Any], place: int) -> Wanted:
    """An entry of the file; a position may refer to those before it alone."""
    colour, position, count = entry.get("color"), entry.get("position"), entry["count"]
    if colour not in (None, *COLOURS):
        raise ValueError(f"its color is {colour!r}")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"its count is {count!r}")
    if position is not None:
        relation, target = position
        if relation not in RELATIONS or target not in range(place):
            raise ValueError(f"its position is {position!r}")
        position = relation, target
    return Wanted(entry["class"], count, colour, position)
