import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer, BlipForQuestionAnswering

from snapgen_pl.metrics.dpg import DPGBench
from snapgen_pl.metrics.dpg.answers import Answers
from snapgen_pl.metrics.dpg.questions import Question, read_questions, score
from snapgen_pl.metrics.feature_store import MemoryFeatures
from snapgen_pl.metrics.judge_network import CLIP
from tests.metrics.tiny_judges import features, images, save_vqa

CPU = torch.device("cpu")
COLUMNS = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed",
           "tuple", "question_natural_language"]  # fmt: skip
CAT = "A red cat,\nthere  with a dog"


def row(item: str, text: str, number: int, dependency: str, category: str, question: str) -> list[str]:
    return [item, text, "", str(number), dependency, category, "", "", question]


ROWS = [
    row("cat1", CAT, 1, "0", "entity", "is there a cat ?"),
    row("cat1", CAT, 2, "1", "attribute", "is the cat red ?"),
    row("cat1", CAT, 3, "0", "entity", "is there a dog ?"),
    row("cat1", CAT, 4, "3, 1", "relation", "is the cat there ?"),
    row("dog2", "a dog", 1, "0", "entity", "is there a dog ?"),
]


def write(folder: Path, rows: Sequence[Sequence[str]] = ROWS, columns: Sequence[str] = COLUMNS) -> Path:
    path = folder / "dpg_bench.csv"
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return path


def questions(*parents: tuple[int, ...]) -> list[Question]:
    return [Question(number, own, "entity", "?") for number, own in enumerate(parents, start=1)]


def test_a_question_fails_with_those_that_it_depends_on() -> None:
    chain = questions((), (1,), (2,), ())
    assert score(chain, [True] * 4) == 1
    assert score(chain, [False, True, True, True]) == 0.25  # the third fails through the second
    assert score(chain, [True, False, True, True]) == 0.5
    assert score(questions((), (), (1, 2)), [True, False, True]) == pytest.approx(1 / 3)


@given(st.data())
def test_failing_only_ever_costs(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    asked = questions(*(tuple(data.draw(st.sets(st.integers(1, max(1, i))))) if i else () for i in range(count)))
    yes = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    value = score(asked, yes)
    assert 0 <= value <= sum(yes) / count
    place = data.draw(st.integers(0, count - 1))
    assert value <= score(asked, [*yes[:place], True, *yes[place + 1 :]])


def test_questions_are_read_by_prompt_whatever_its_white_space(tmp_path: Path) -> None:
    found = read_questions(write(tmp_path))
    assert list(found) == ["A red cat, there with a dog", "a dog"]
    assert found["A red cat, there with a dog"][3] == Question(4, (3, 1), "relation", "is the cat there ?")


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (ROWS, [*COLUMNS[:-1], "question"], "has no columns question_natural_language"),
        ([row("a", "a", 1, "2", "entity", "is it ?")], COLUMNS, "question 1 of a depends on 2, unknown"),
        ([row("a", "a", 1, "0", "entity", "is it ?")] * 2, COLUMNS, "question 1 of a is there twice"),
        ([row("a", "a", 1, "", "entity", "is it ?")], COLUMNS, "is not DPG-Bench's"),
        ([row("a", "a", 1, "0", "entity", " ")], COLUMNS, "question 1 of a is empty"),
        ([row("a", "b", 1, "0", "entity", "is it ?"), row("c", "b", 1, "0", "entity", "or not ?")], COLUMNS,
         "the prompt of c has other questions"),
        ([], COLUMNS, "holds no questions"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_questions(write(tmp_path, rows, columns))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vqa(tmp_path_factory.mktemp("vqa"))


def test_answers_are_those_of_the_network_asked_alone(judge: Path) -> None:
    (image_CHW,) = images(1, side=16)
    asked = ["is there a cat ?", "is the dog red ?", "cat ?", "is the cat red ? a photo of the cat", "is there a dog ?"]
    network, tokenizer = BlipForQuestionAnswering.from_pretrained(judge).eval(), BertTokenizer.from_pretrained(judge)
    alone = []
    for question in asked:
        ids = tokenizer([question], return_tensors="pt")["input_ids"]
        said = network.generate(input_ids=ids, pixel_values=CLIP(image_CHW[None].float()), max_new_tokens=10)
        alone.append(tokenizer.decode(said[0, 1:], skip_special_tokens=True).strip())
    assert Answers(str(judge))(image_CHW, asked) == alone
    assert {alone[0], alone[1]} == {"yes", "no"}


def test_real_answers_make_the_value_and_its_categories(tmp_path: Path, judge: Path) -> None:
    metric = DPGBench(write(tmp_path), str(judge))
    metric.prepare(CPU)
    metric.check_requests([CAT, "a  dog"])
    found = features(metric, images(4, side=16), [CAT, "a dog"] * 2)
    # Yes to what holds a cat, no to others: 1 and 2 hold, 3 does not, and so 4 does not, whatever was answered.
    assert found[:, 0].tolist() == [0.5, 0, 0.5, 0]
    values = metric.measure(MemoryFeatures(4, [{"dpg_blip": found[:3]}, {"dpg_blip": found[3:]}]))
    assert {name: score.value for name, score in values.items()} == {
        "dpg_blip@4": 25,
        "dpg_blip_attribute@4": 100,
        "dpg_blip_entity@4": pytest.approx(100 / 3),
        "dpg_blip_relation@4": 100,
    }
    assert "dpg_blip" in metric.measure(MemoryFeatures(8, [{"dpg_blip": found.repeat(2, 1)}]))


def test_what_cannot_be_judged_is_named_before_anything_is_drawn(tmp_path: Path, judge: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file nowhere\.csv; give dpg_bench\.csv"):
        DPGBench(Path("nowhere.csv"), str(judge)).prepare(CPU)
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        DPGBench(write(tmp_path), "nowhere").prepare(CPU)
    metric = DPGBench(write(tmp_path), str(judge))
    metric.prepare(CPU)
    with pytest.raises(ValueError, match="asks nothing about 'a bus'"):
        metric.check_requests(["a dog", "a bus"])
