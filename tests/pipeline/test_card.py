"""What a model card says, and that what it says works."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from snapgen_pl.config_files import load_config
from snapgen_pl.metrics.sample_metric import Score
from snapgen_pl.metrics.sample_report import SampleReport
from snapgen_pl.pipeline.card import model_card
from snapgen_pl.pipeline.export import pipeline_of
from snapgen_pl.pipeline.ingredients import Ingredient, ingredients
from snapgen_pl.pipeline.licences import (
    APACHE,
    BY_NAME,
    CC_BY,
    EMOJI,
    GEMMA,
    MIT,
    STABILITY,
    Licence,
    licence_of,
    most_restrictive,
)
from snapgen_pl.pipeline.snapgen_pipeline import SnapGenPipeline
from snapgen_pl.trained_run import TrainedRun, open_run
from tests.damage import damaged_json
from tests.export.exported_run import part
from tests.pipeline.conftest import export

SD35 = "stabilityai/stable-diffusion-3.5-large"


def head(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def config(data: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {"model": part("modules.distill.Distill", **model), "data": part("data.datamodule.ImageData", source=data)}


def emoji(*styles: str) -> dict[str, Any]:
    return part("data.emoji.Emoji", styles=list(styles))


def with_config(run: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A run's copy that says that it was made otherwise."""
    copy = Path(shutil.copytree(run, folder))
    content = yaml.safe_load((copy / "config.yaml").read_text())
    content["model"]["init_args"] |= changes.pop("model", {})
    (copy / "config.yaml").write_text(yaml.safe_dump(content | changes))
    return copy


def test_its_snippet_draws(class_pipeline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(class_pipeline, tmp_path / class_pipeline.name)
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", (class_pipeline / "README.md").read_text(), flags=re.DOTALL)
    exec(snippet, {})
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (16, 16)


def test_it_says_what_the_run_wrote_down(class_run: Path, text_pipeline: Path, class_pipeline: Path) -> None:
    card = (class_pipeline / "README.md").read_text()
    start = json.loads((class_run / "manifest.json").read_text())["starts"][-1]
    for said in (
        start["data"]["fingerprint"],
        start["code"]["commit"],
        f"{start['data']['training_images']} training images in 2 classes",
        "after 2 steps of the optimizer and 8 images",
        "pretraining: rectified flow on data alone",
        "ImageFolder",
        "Nothing was measured of these weights.",
    ):
        assert str(said) in card
    assert head(card)["pipeline_tag"] == "unconditional-image-generation"
    texts = head((text_pipeline / "README.md").read_text())
    assert (texts["library_name"], texts["pipeline_tag"]) == ("diffusers", "text-to-image")


def test_it_gives_the_figures_with_their_protocol(class_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(class_run, tmp_path / "run"))
    SampleReport(
        model="run",
        values={"kid_effnet": Score(5.1999, 0.3013), "judge_top1": Score(0.0138)},
        controls={"real": {"kid_effnet": Score(-0.0073, 0.0443)}},
        measurement={"protocol": 1, "samples": 1000},
        drawing={"sampler": "Euler(steps=2, shift=1.0)"},
        weights={"images_seen": 8},
        seconds=1.5,
        made={"date": "2026-11-26", "command": "python /a/place/of/mine"},
    ).write(copy / "metrics.json")
    card = (export(copy, tmp_path / "out") / "README.md").read_text()
    assert "| images | kid_effnet | judge_top1 |" in card
    assert "| this | 5.2 ± 0.3 | 0.0138 |" in card
    assert "| real | -0.0073 ± 0.044 |  |" in card
    assert "The first row is of these weights;" in card
    assert '"samples": 1000' in card
    assert "/a/place" not in card


class Carded(NamedTuple):
    """A run whose card is written again and again."""

    run: TrainedRun
    pipeline: SnapGenPipeline

    def card(self) -> str:
        return model_card(self.run, self.pipeline, "card")


@pytest.fixture(scope="module")
def carded(class_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Carded:
    run = open_run(str(shutil.copytree(class_run, tmp_path_factory.mktemp("carded") / "run")))
    pipeline = pipeline_of(run)
    torch.save({"global_step": 2, "images_seen": 8}, run.checkpoint)  # all that a card needs, and quick to read
    return Carded(run, pipeline)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"data": 1}, "data is 1, which is no dict"),
        ({"data": {"training_images": "8"}}, "data.training_images is '8', which is no int"),
        ({"data": {"classes": 2}}, "data.classes is 2, which is no list"),
        ({"code": ["1.0"]}, "code is ['1.0'], which is no dict"),
        ({"code": {"dirty": []}}, "code.dirty is [], which is no bool"),
        ({"packages": "torch"}, "packages is 'torch', which is no dict"),
        ({"teacher": True}, "teacher is True, which is no dict"),
        ({"init_from": "runs/first"}, "init_from is 'runs/first', which is no dict"),
    ],
)
def test_a_damaged_manifest_is_named(carded: Carded, start: dict[str, Any], said: str) -> None:
    manifest = carded.run.folder / "manifest.json"
    manifest.write_text(json.dumps({"starts": [start]}))
    with pytest.raises(ValueError, match=re.escape(f"{manifest} is damaged: {said}; put it back")):
        carded.card()


@pytest.mark.parametrize("name", ["manifest.json", "metrics.json"])
@given(data=st.data())
def test_whatever_becomes_of_what_a_run_wrote_down(
    carded: Carded, class_run: Path, name: str, data: st.DataObject
) -> None:
    """A card is written, or the file is named."""
    whole = {
        "manifest.json": json.loads((class_run / "manifest.json").read_text()),
        "metrics.json": {
            "model": "run",
            "values": {"kid_effnet": {"value": 5.2, "spread": 0.3}},
            "controls": {"real": {"kid_effnet": {"value": 0.0, "spread": None}}},
            **{key: {"samples": 8} for key in ("measurement", "drawing", "weights", "made")},
            "seconds": 1.5,
        },
    }
    for file, content in whole.items():
        (carded.run.folder / file).write_text(json.dumps(content))
    (carded.run.folder / name).write_text(json.dumps(data.draw(damaged_json(whole[name]))))
    try:
        said = carded.card()
    except ValueError as error:
        said = str(error)
    assert said.startswith("---\n") or str(carded.run.folder / name) in said


def test_what_is_not_known_is_said_not_to_be(class_pipeline: Path) -> None:
    card = (class_pipeline / "README.md").read_text()
    assert head(card)["license"] == "unknown"
    assert "ask the owners of what is unknown" in card
    assert "| data | ImageFolder photos" in card
    assert "unknown: ask the owner |" in card
    assert not (class_pipeline / "NOTICE").exists()


@pytest.mark.parametrize("shards", ["https://host/photos/{00..99}.tar?key=secret", ["photos/00.tar", "more"]])
def test_data_from_tars_are_named_without_what_may_be_secret(shards: str | list[str]) -> None:
    (told,) = ingredients({"data": {"class_path": "snapgen_pl.data.tar_data.TarData", "init_args": {"shards": shards}}})
    assert (told.role, told.licence) == ("data", None)
    assert told.name in ("tars {00..99}.tar", "tars photos/00.tar")


def test_a_student_of_sd35_under_gemma_owes_to_both(class_run: Path, tmp_path: Path) -> None:
    teacher = part("teachers.sd3.SD3Teacher", path=SD35, conditioner=part("conditioning.sd3_texts.SD3Texts", path=SD35))
    run = with_config(
        class_run, tmp_path / "run", {"model": {"teacher": teacher}, "data": config(emoji("noto"))["data"]}
    )
    out = export(run, tmp_path / "out")
    card, notice = (out / "README.md").read_text(), (out / "NOTICE").read_text()
    assert head(card)["license"] == "other"
    assert head(card)["license_name"] == "stabilityai-ai-community"
    assert head(card)["base_model"] == [SD35]
    assert "**Powered by Stability AI**" in card
    assert "USD 1,000,000 of annual revenue" in card
    assert "licensed under the Stability AI Community License, Copyright © Stability AI Ltd." in notice
    encoder = part("conditioning.gemma_text.GemmaText", path="google/gemma-2-2b")
    texts = part("conditioning.joined_texts.JoinedTexts", encoders={"gemma": encoder})
    found = ingredients(config(emoji("noto"), teacher=teacher, conditioner=texts))
    assert {each.licence for each in found if each.role in ("teacher", "text encoder")} == {STABILITY, GEMMA}
    assert most_restrictive(each.licence for each in found) is STABILITY


def test_emoji_are_under_the_licences_of_their_styles() -> None:
    attribution = (Path(__file__).parents[2] / "snapgen_pl/data/emoji/licenses/ATTRIBUTION.md").read_text()
    for style, (_, licence) in EMOJI.items():
        assert re.search(rf"`{style}\.webp`.*\| {licence.name} \(", attribution), style
    whole = ingredients(config(emoji(*EMOJI)))
    assert most_restrictive(each.licence for each in whole) is CC_BY
    assert most_restrictive(each.licence for each in ingredients(config(emoji("noto")))) is APACHE


def test_what_runs_bring_in_is_followed(class_run: Path, tmp_path: Path) -> None:
    """A teacher learned from SD3.5, the student from that teacher; a run that is gone is not passed over."""
    teacher = part("teachers.sd3.SD3Teacher", path=SD35)
    first = with_config(
        class_run, tmp_path / "first", {"model": {"teacher": teacher, "init_from": str(tmp_path / "first")}}
    )
    of_run = config(emoji("noto"), teacher=part("teachers.run.RunTeacher", run=str(first)))
    assert Ingredient("teacher", SD35, STABILITY, "first") in ingredients(of_run)
    pipeline = export(first, tmp_path / "pipeline")
    begun = ingredients(config(emoji("noto"), init_from=str(pipeline)))
    assert Ingredient("teacher", SD35, STABILITY, "pipeline") in begun
    (pipeline / "README.md").write_text("nothing")
    unsaid = ingredients(config(emoji("noto"), init_from=str(pipeline)))
    assert Ingredient("begun with", "pipeline, a pipeline whose card does not say", None) in unsaid
    gone = ingredients(config(emoji("noto"), init_from=str(tmp_path / "gone")))
    assert Ingredient("begun with", "gone, a run that is not at hand", None) in gone


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        (SD35, STABILITY),
        (f"{SD35}-turbo", STABILITY),
        ("/weights/stable-diffusion-3.5-large/", STABILITY),
        ("google/gemma-2-2b", GEMMA),
        ("openai/clip-vit-large-patch14", MIT),
        ("somebody/gemma-2-2b-finetune", None),
        ("weights", None),
    ],
)
def test_licences_are_told_by_name_alone(path: str, licence: Licence | None) -> None:
    assert licence_of(path) is licence


@given(st.lists(st.sampled_from([*BY_NAME.values(), None]), min_size=1))
def test_the_whole_is_never_freer_than_a_part(parts: list[Licence | None]) -> None:
    whole = most_restrictive(parts)
    known = [each for each in parts if each is not None]
    if whole is not None:
        assert whole in known
        assert all(each.restricts <= whole.restricts for each in known)
        assert None not in parts or whole.asks
    else:
        assert None in parts


def test_every_network_that_the_experiments_name_is_known() -> None:
    for file in (Path(__file__).parents[2] / "experiments").rglob("*.yaml"):
        for each in ingredients(load_config(file)):
            assert each.licence is not None or each.role in ("data", "begun with", "teacher") or "/" not in each.name, (
                file,
                each,
            )
