import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.data.emoji import Emoji, EmojiSet
from snapgen_pl.data.emoji.vendored import STYLES
from snapgen_pl.metrics.comparison import Comparison
from snapgen_pl.metrics.effnet_distances import EffNetDistances
from snapgen_pl.metrics.emoji_judge import EmojiJudge
from snapgen_pl.metrics.emoji_judge.build import SHUFFLED, main, pixels, shuffled
from snapgen_pl.metrics.emoji_judge.captions import AMONG, Captions
from snapgen_pl.metrics.emoji_judge.linear import LinearMap, Standardisation
from snapgen_pl.metrics.emoji_judge.maps import FILE, KINDS, JudgeMaps, Origin
from snapgen_pl.metrics.feature_store import MemoryFeatures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def held_out() -> EmojiSet:
    images = Emoji().open().validation
    assert isinstance(images, EmojiSet)
    return images


@pytest.fixture(scope="module")
def judge() -> EmojiJudge:
    judge = EmojiJudge()
    judge.prepare(CPU)
    return judge


def measured(judge: EmojiJudge, image_BCHW: Tensor, asked: list[str]) -> dict[str, float]:
    features = MemoryFeatures(len(asked), [judge.features(image_BCHW, asked)])
    return {name: score.value for name, score in judge.measure(features).items()}


def test_real_images_are_known_by_their_captions_and_not_by_others(judge: EmojiJudge, held_out: EmojiSet) -> None:
    """80 images, 20 of a style: the figures of all are within three standard errors."""
    chosen = list(range(0, len(held_out), len(held_out) // 80))[:80]
    image_BCHW = pixels(held_out)[chosen]
    captions = [held_out.caption(index) for index in chosen]
    real = judge.controls()["real"]
    found = measured(judge, image_BCHW, captions)
    for name, score in real.items():
        assert found[name] == pytest.approx(score.value, abs=3 * (score.value * (1 - score.value) / 80) ** 0.5), name
    mixed = measured(judge, image_BCHW, [*captions[1:], captions[0]])
    assert mixed["judge_top1"] < 0.06 < found["judge_top1"]
    # Noto's images, asked for as Twemoji: what they show is found as before, their style is wrong.
    noto = [index for index, caption in enumerate(captions) if caption.endswith("noto style")]
    asked = [captions[index].replace("noto style", "twemoji style") for index in noto]
    assert measured(judge, image_BCHW[noto], asked)["judge_style"] < 0.3


def test_the_figures_fall_with_what_is_left_of_images(judge: EmojiJudge) -> None:
    figures = judge.controls()
    top1 = [figures[control]["judge_top1"].value for control in ("real", "16px", "8px", SHUFFLED)]
    assert top1 == sorted(top1, reverse=True)
    assert top1[0] > 0.35
    assert top1[-1] == pytest.approx(0.01, abs=0.01)
    assert figures["real"]["judge_style"].value > 0.75
    assert figures[SHUFFLED]["judge_style"] == figures["real"]["judge_style"]


def test_each_image_is_judged_alone(judge: EmojiJudge, held_out: EmojiSet) -> None:
    captions = [held_out.caption(index) for index in range(6)]
    together = judge.features(pixels(held_out)[:6], captions)["emoji_judge"]
    back = judge.features(pixels(held_out)[:6].flip(0), captions[::-1])["emoji_judge"].flip(0)
    torch.testing.assert_close(together, back, atol=1e-4, rtol=0)
    assert together.shape == (6, len(KINDS))


def test_top1_is_the_mean_over_choices_of_rivals() -> None:
    generator = torch.Generator().manual_seed(0)
    sentence_KD = torch.nn.functional.normalize(torch.randn(240, 16, generator=generator), dim=1)
    styles = torch.arange(240) % 2
    captions = Captions({}, styles, sentence_KD)
    own_N = torch.arange(240)
    image_ND = torch.nn.functional.normalize(
        sentence_KD + 0.4 * torch.randn(sentence_KD.shape, generator=generator), dim=1
    )
    rivals = [index for index in range(1, 240) if styles[index] == styles[0]]
    hits = []
    for _ in range(4_000):
        among = [0, *(rivals[at] for at in torch.randperm(len(rivals), generator=generator)[: AMONG - 1])]
        hits.append(float(int((image_ND[0] @ sentence_KD[among].T).argmax()) == 0))
    expected_N = captions.top1(image_ND, own_N)
    assert expected_N[0] == pytest.approx(sum(hits) / len(hits), abs=0.03)
    assert 0.3 < expected_N.mean() < 0.9
    assert torch.equal(captions.top1(sentence_KD, own_N), torch.ones(240))
    # The farthest of all, the own caption is never the nearest.
    assert captions.top1(-sentence_KD, own_N).max() == 0


def test_shuffling_gives_every_image_another_caption_of_its_style(held_out: EmojiSet) -> None:
    order = shuffled(torch.arange(len(held_out))).tolist()
    assert sorted(order) == list(range(len(held_out)))
    assert all(index != other for index, other in enumerate(order))
    assert all(held_out.styles[index] == held_out.styles[other] for index, other in enumerate(order))


def test_requests_that_are_no_held_out_captions_are_refused(judge: EmojiJudge, held_out: EmojiSet) -> None:
    judge.check_requests([held_out.caption(0)])
    for asked in ("a unicorn, noto style", "animal-bird, noto"):
        with pytest.raises(ValueError, match=rf"'{asked}' is no caption of a held-out emoji.*labels of SampleMetrics"):
            judge.check_requests([asked])


def test_images_that_nobody_asked_for_are_not_judged(judge: EmojiJudge, held_out: EmojiSet) -> None:
    """Training images, references and controls of other metrics, pass by; the judge's own controls stand beside."""
    comparison = Comparison([EffNetDistances(subset_size=4), judge])
    comparison.prepare(CPU)
    image_BCHW = pixels(held_out)[:8]
    features = MemoryFeatures(8, [comparison.features(image_BCHW)])
    comparison.set_references(features)
    assert set(comparison.measure(features, drawn=False)) == {"kid_effnet"}
    asked = [held_out.caption(index) for index in range(8)]
    drawn = MemoryFeatures(8, [comparison.features(image_BCHW, asked)])
    assert set(comparison.measure(drawn)) == {"kid_effnet", *KINDS}
    assert comparison.controls()["real"].keys() == set(KINDS)


def test_too_few_captions_and_other_networks_are_refused(held_out: EmojiSet, monkeypatch: pytest.MonkeyPatch) -> None:
    few = EmojiSet(held_out.image_BHWC[:99], held_out.labels[:99], held_out.concepts[:99], held_out.styles[:99])
    judge = EmojiJudge()
    with pytest.raises(ValueError, match="not prepared"):
        judge.check_requests([])
    maps = JudgeMaps.load()
    other = replace(maps, origin=maps.origin._replace(image_network="0" * 64))
    monkeypatch.setattr(JudgeMaps, "load", lambda: other)
    with pytest.raises(ValueError, match="trained with another image network, 000000000000"):
        EmojiJudge().prepare(CPU)
    with pytest.raises(ValueError, match="a style has 0 captions"):
        Captions.of(few, MiniLM(pooled=True))


def test_the_file_is_small_says_what_it_was_made_of_and_is_written_as_it_was(tmp_path: Path) -> None:
    assert FILE.stat().st_size < 1_100_000
    maps = JudgeMaps.load()
    assert maps.origin.data == Emoji().open().fingerprint
    with safe_open(FILE, framework="pt") as opened:
        assert Origin(**json.loads(opened.metadata()["judge"])["origin"]) == maps.origin
    maps.write(tmp_path / "judge.safetensors")
    assert (tmp_path / "judge.safetensors").read_bytes() == FILE.read_bytes()


def test_files_that_are_no_judge_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(ValueError, match="missing or damaged"):
        JudgeMaps.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no judge of"):
        JudgeMaps.load(path)
    path.write_bytes(FILE.read_bytes()[:1000])
    with pytest.raises(ValueError, match="missing or damaged"):
        JudgeMaps.load(path)


def test_a_standardisation_and_a_map_are_one_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 6, generator=generator) * 3 + 1
    standardised = Standardisation.of(x)
    assert standardised(x).std(dim=0).allclose(torch.ones(6))
    after = LinearMap(torch.randn(2, 6, generator=generator), torch.randn(2, generator=generator))
    torch.testing.assert_close(standardised.before(after)(x), after(standardised(x)))
    with pytest.raises(ValueError, match=r"expected features \(N, 6\), got \(2, 5\)"):
        after(torch.zeros(2, 5))


@pytest.mark.slow
def test_building_it_again_gives_the_committed_judge(tmp_path: Path) -> None:
    main(tmp_path / "judge.safetensors")
    again, committed = JudgeMaps.load(tmp_path / "judge.safetensors"), JudgeMaps.load()
    assert (again.origin, set(again.recipe)) == (committed.origin, set(committed.recipe))
    for control, figures in committed.figures.items():
        assert again.figures[control] == pytest.approx(figures, abs=0.011), control
    for rebuilt, weights in ((again.caption, committed.caption), (again.style, committed.style)):
        difference = rebuilt.weight.float() - weights.weight.float()
        assert difference.norm() < 0.01 * weights.weight.float().norm()
    assert len(STYLES) == len(committed.style.bias)
