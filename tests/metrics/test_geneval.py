import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.metrics.clip import CLIP
from snapgen_pl.metrics.feature_store import MemoryFeatures
from snapgen_pl.metrics.geneval import GenEval
from snapgen_pl.metrics.geneval.colours import Colours
from snapgen_pl.metrics.geneval.detector import Detector, detections
from snapgen_pl.metrics.geneval.rules import (
    COLOURS,
    TASKS,
    Detection,
    Spec,
    Wanted,
    kept,
    read_specs,
    relations,
    shows,
)
from tests.conditioning import tiny_clip
from tests.metrics.tiny_judges import CLASSES, features, images, save_detector

Box = tuple[float, float, float, float]
LEFT, RIGHT = (0.0, 40.0, 20.0, 60.0), (80.0, 40.0, 100.0, 60.0)
CPU = torch.device("cpu")
LINES = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}],
     "prompt": "a photo of a cat and a dog"},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}],
     "prompt": "a photo of two dogs"},
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"},
    {"tag": "position", "include": [{"class": "cat", "count": 1},
     {"class": "dog", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a dog left of a cat"},
    {"tag": "color_attr", "include": [{"class": "cat", "count": 1, "color": "red"},
     {"class": "computer mouse", "count": 1, "color": "blue"}],
     "prompt": "a photo of a red cat and a blue computer mouse"},
]  # fmt: skip


def write(folder: Path, lines: Sequence[object] = LINES) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def seen(name: str, score: float = 0.95, box: Box = LEFT) -> Detection:
    return Detection(name, score, box, torch.ones(1, 1, dtype=torch.bool))


def right(spec: Spec, *found: Detection, colours: str = "") -> bool:
    """Whether an image of these objects is right, the colours of each class given in the order of its objects."""
    names = colours.split()
    return shows(spec, kept(found, spec.task), lambda _, objects: names[: len(objects)])


@pytest.mark.parametrize(
    ("box", "holds"),
    [
        ((0, 0, 10, 10), {"left of", "above"}),  # a slant: both lie over 1/2
        ((0, 90, 20, 110), {"left of"}),
        ((180, 90, 200, 110), {"right of"}),
        ((90, 0, 110, 20), {"above"}),
        ((90, 180, 110, 200), {"below"}),
        ((90, 90, 110, 110), set()),
        ((92, 90, 112, 110), set()),  # within a tenth of both widths
    ],
)
def test_relations_of_boxes(box: Box, holds: set[str]) -> None:
    assert relations(box, (90, 90, 110, 110)) == holds


@given(st.lists(st.integers(0, 200), min_size=8, max_size=8), st.integers(-50, 50), st.sampled_from([0.5, 2, 3]))
def test_relations_turn_round_with_the_boxes_and_do_not_depend_on_place_or_scale(
    numbers: list[int], shift: int, scale: float
) -> None:
    left, top, right_, bottom, *other = numbers
    first = (min(left, right_), min(top, bottom), max(left, right_) + 1, max(top, bottom) + 1)
    second = (
        min(other[0], other[2]),
        min(other[1], other[3]),
        max(other[0], other[2]) + 1,
        max(other[1], other[3]) + 1,
    )
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    holds = relations(first, second)
    assert {opposite[relation] for relation in holds} == relations(second, first)
    assert relations([x * scale + shift for x in first], [x * scale + shift for x in second]) == holds
    assert not {"left of", "right of"} <= holds
    assert not {"above", "below"} <= holds


def test_detections_count_from_the_score_of_their_task_on_the_surest_first_and_16_of_a_class() -> None:
    found = [seen("cat", score) for score in (0.3, 0.31, 0.9, 0.95)] + [seen("dog", 0.2)]
    assert [each.score for each in kept(found, "colors")["cat"]] == [0.95, 0.9, 0.31]
    assert [each.score for each in kept(found, "counting")["cat"]] == [0.95]
    assert not kept(found, "colors")["dog"]
    many = kept([seen("cat", 0.5 + i / 100) for i in range(20)], "colors")["cat"]
    assert [round(each.score, 2) for each in many] == [round(0.69 - i / 100, 2) for i in range(16)]


def test_objects_must_be_there_and_as_many_as_asked_for(tmp_path: Path) -> None:
    single, two, counting = read_specs(write(tmp_path))[:3]
    assert right(single, seen("cat"), seen("cat"), seen("dog"))
    assert not right(single, seen("dog"), seen("cat", 0.3))
    assert right(two, seen("dog"), seen("cat"))
    assert not right(two, seen("dog"), seen("dog"))
    assert [right(counting, *[seen("dog")] * count) for count in range(5)] == [False, False, True, False, False]
    assert right(counting, seen("dog"), seen("dog"), seen("dog", 0.9))  # the third is not sure enough to be counted
    # Too many of what is not excluded is no matter, as in the published evaluator.
    assert right(replace(counting, exclude=()), *[seen("dog")] * 5)


def test_colours_are_those_of_the_surest_objects(tmp_path: Path) -> None:
    colours, attributes = (read_specs(write(tmp_path))[place] for place in (3, 5))
    assert right(colours, seen("cat"), colours="red")
    assert not right(colours, seen("cat"), colours="green")
    # One is asked for: the second is not looked at.
    assert not right(colours, seen("cat"), seen("cat", 0.5), colours="green red")
    asked = dict[str, int]()

    def see(name: str, objects: Sequence[Detection]) -> list[str]:
        asked[name] = len(objects)
        return {"cat": ["red"], "computer mouse": ["blue"]}[name]

    assert shows(attributes, kept([seen("cat"), seen("computer mouse")], "color_attr"), see)
    assert asked == {"cat": 1, "computer mouse": 1}
    swapped = replace(attributes, include=tuple(replace(each, colour="green") for each in attributes.include))
    assert not shows(swapped, kept([seen("cat"), seen("computer mouse")], "color_attr"), see)
    two = Spec("colors", "", (Wanted("cat", 2, "red"),))
    assert right(two, seen("cat"), seen("cat"), colours="red red")
    assert not right(two, seen("cat"), seen("cat"), colours="red blue")


def test_places_are_relative_to_what_else_was_found(tmp_path: Path) -> None:
    spec = read_specs(write(tmp_path))[4]
    assert right(spec, seen("dog", box=LEFT), seen("cat", box=RIGHT))
    assert not right(spec, seen("dog", box=RIGHT), seen("cat", box=LEFT))
    assert not right(spec, seen("dog", box=LEFT))
    # The surest dog is on the wrong side.
    assert not right(
        spec, seen("dog", 0.9, RIGHT), seen("dog", 0.8, (0, 40, 10, 60)), seen("cat", box=(40, 40, 60, 60))
    )
    # Each of two dogs must be left of the cat.
    both = replace(spec, include=(spec.include[0], replace(spec.include[1], count=2)))
    assert right(both, seen("dog", box=LEFT), seen("dog", box=(20, 40, 30, 60)), seen("cat", box=RIGHT))
    assert not right(both, seen("dog", box=LEFT), seen("dog", box=RIGHT), seen("cat", box=(40, 40, 60, 60)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tag": "sizes"}, "its tag is 'sizes'"),
        ({"include": []}, "of 0 objects"),
        ({"include": [{"class": "cat"}]}, "'count'"),
        ({"include": [{"class": "cat", "count": 0}]}, "its count is 0"),
        ({"include": [{"class": "cat", "count": 1, "color": "mauve"}]}, "its color is 'mauve'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "its position is"),
        ({"include": None}, "is none of GenEval's"),
    ],
)
def test_a_line_that_asks_for_nothing_known_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        read_specs(write(tmp_path, [LINES[1], LINES[0] | change]))
    assert "'a photo of a cat'" in str(raised.value)


def logits(*rectangles: tuple[int, int, int, int], value: float = 3.0) -> Tensor:
    """Masks (Q, 16, 16): ``value`` inside of each (left, top, right, bottom), its negative outside."""
    masks = torch.full((len(rectangles), 16, 16), -value)
    for mask, (left, top, right_, bottom) in zip(masks, rectangles, strict=True):
        mask[top:bottom, left:right_] = value
    return masks


def test_a_query_is_a_box_round_its_mask_and_as_sure_as_class_and_mask_are() -> None:
    class_QC = torch.tensor([[5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 9.0], [0.0] * 4])
    masks = logits((2, 4, 6, 12), (0, 0, 16, 8), (1, 1, 5, 5), (1, 1, 5, 5))
    first, second = detections(class_QC, masks, CLASSES, 16)
    assert (first.name, first.box) == ("cat", (2, 4, 6, 12))
    assert (second.name, second.box) == ("dog", (0, 0, 16, 8))
    assert int(first.mask_HW.sum()) == 4 * 8
    sure = torch.sigmoid(torch.tensor(3.0))
    assert first.score == pytest.approx(float(class_QC[0].softmax(0)[0] * sure), rel=1e-6)
    # At twice the size, edges between pixels lie where logits cross 0: nothing moves.
    assert detections(class_QC, masks, CLASSES, 32)[0].box == (4, 8, 12, 24)


def test_a_query_may_be_two_things_and_one_without_a_mask_is_none() -> None:
    class_QC = torch.tensor([[5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    found = detections(class_QC, torch.cat([logits((2, 4, 6, 12)), torch.full((1, 16, 16), -1.0)]), CLASSES, 16)
    assert sorted(each.name for each in found) == ["cat", "mouse"]
    assert found[0].score == pytest.approx(found[1].score)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("judges")
    tiny_clip.save_whole_clip(folder / "clip")
    return save_detector(folder / "detector"), folder / "clip"


def test_a_colour_is_of_the_object_alone_by_the_nearest_mean_of_three_texts(judges: tuple[Path, Path]) -> None:
    clip = CLIP(str(judges[1]))
    mask_HW = torch.zeros(32, 32, dtype=torch.bool)
    mask_HW[4:20, 8:16] = True
    mask_HW[10, 10] = False
    found = Detection("cat", 0.9, (8, 4, 16, 20), mask_HW)
    one, other = images(2)
    other = torch.where(mask_HW, one, other)
    colours = Colours(clip)
    (colour,) = colours(one, "cat", [found])
    assert colours(other, "cat", [found]) == [colour]
    cut = one.clone()
    cut[:, ~mask_HW] = 0x99
    means = []
    for name in COLOURS:
        texts = [f"a photo of a {name} cat", f"a photo of a {name}-colored cat", f"a photo of a {name} object"]
        mean = clip.texts(texts).vector_BD.mean(dim=0)
        means.append(mean / mean.norm())
    nearest = (torch.stack(means) @ clip.images(cut[None, :, 4:20, 8:16])[0]).argmax()
    assert colour == COLOURS[int(nearest)]


def test_real_networks_judge_images_alike_one_by_one_and_together(tmp_path: Path, judges: tuple[Path, Path]) -> None:
    metric = GenEval(write(tmp_path), *map(str, judges))
    metric.prepare(CPU)
    asked = [str(LINES[place]["prompt"]) for place in (0, 1, 5)]
    metric.check_requests(asked)
    found = features(metric, images(3), asked)
    assert found[:, 0].tolist() == [TASKS.index(task) for task in ("single_object", "two_object", "color_attr")]
    spotted = Detector(str(judges[0]))(images(3))
    assert any(spotted), "a detector that finds nothing would prove nothing"
    assert bool(found[0, 1]) == any(each.name == "cat" and each.score > 0.3 for each in spotted[0])
    names = {each.name for each in spotted[1] if each.score > 0.3}
    assert bool(found[1, 1]) == (names >= {"cat", "dog"})
    assert metric.protocol()["least_score_counting"] == 0.9


def test_the_value_is_the_mean_over_tasks_and_less_than_the_protocol_has_another_name(
    tmp_path: Path, judges: tuple[Path, Path]
) -> None:
    rows = torch.tensor([[0.0, 1.0]] * 3 + [[0.0, 0.0]] + [[2.0, 0.0]] * 2 + [[5.0, 1.0]])
    small = GenEval(write(tmp_path), *map(str, judges))
    small.prepare(CPU)
    values = small.measure(MemoryFeatures(7, [{"geneval": rows[:2]}, {"geneval": rows[2:]}]))
    assert {name: score.value for name, score in values.items()} == {
        "geneval@7": pytest.approx((0.75 + 0 + 1) / 3),
        "geneval_single_object@7": 0.75,
        "geneval_counting@7": 0,
        "geneval_color_attr@7": 1,
    }
    full = GenEval(write(tmp_path, [LINES[0] | {"prompt": f"cat {i}"} for i in range(553)]), *map(str, judges))
    full.prepare(CPU)
    whole = torch.tensor([[0.0, 1.0]]).repeat(4 * 553, 1)
    assert full.measure(MemoryFeatures(4 * 553, [{"geneval": whole}])).keys() == {"geneval", "geneval_single_object"}
    assert "geneval@553" in full.measure(MemoryFeatures(553, [{"geneval": whole[:553]}]))


def test_what_cannot_be_judged_is_named_before_anything_is_drawn(tmp_path: Path, judges: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"there is no file nowhere\.jsonl; give evaluation_metadata\.jsonl"):
        GenEval(Path("nowhere.jsonl"), *map(str, judges)).prepare(CPU)
    giraffe = {"tag": "single_object", "include": [{"class": "giraffe", "count": 1}], "prompt": "a photo of a giraffe"}
    with pytest.raises(ValueError, match="does not know 1 of the prompts' classes, such as 'giraffe'"):
        GenEval(write(tmp_path, [giraffe]), *map(str, judges)).prepare(CPU)
    with pytest.raises(ValueError, match="stands for two things"):
        GenEval(write(tmp_path, [LINES[0], LINES[1] | {"prompt": LINES[0]["prompt"]}]), *map(str, judges)).prepare(CPU)
    metric = GenEval(write(tmp_path), *map(str, judges))
    metric.prepare(CPU)
    with pytest.raises(ValueError, match="'a photo of a bus' is no prompt of"):
        metric.check_requests([str(LINES[0]["prompt"]), "a photo of a bus"])
    with pytest.raises(ValueError, match="are not square"):
        metric.features(torch.zeros(1, 3, 8, 16, dtype=torch.uint8), ["a photo of a cat"])


def test_the_detectors_names_are_those_of_the_prompts(judges: tuple[Path, Path], tmp_path: Path) -> None:
    assert Detector(str(judges[0])).names == ("cat", "computer mouse", "dog")
    folder = Path(shutil.copytree(judges[0], tmp_path / "detector"))
    file = folder / "config.json"
    for theirs, own in {
        ("motorbike", "aeroplane", "sofa"): ("motorcycle", "airplane", "couch"),
        ("pottedplant", "diningtable", "tvmonitor"): ("potted plant", "dining table", "tv"),
    }.items():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": dict(enumerate(theirs))}))
        assert Detector(str(folder)).names == own
