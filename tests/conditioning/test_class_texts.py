from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from snapgen_pl.conditioning.class_texts import FILE, ClassTexts
from snapgen_pl.conditioning.minilm import MiniLM
from tests.conditioning.tiny_clip import POSITIONS, WIDTH, clip_text

CLASSES = ("cat", "dog", "a_cat")
TEXTS = ["a photo of cat", "a photo of dog", "a photo of a cat"]


def class_texts(pipeline: Path, template: str = "a photo of {name}", dropout: float = 0.1) -> ClassTexts:
    return ClassTexts(clip_text(pipeline), template, num_classes=5, dropout=dropout)


def rounded(states: Tensor) -> Tensor:
    return states.half().float()


def test_a_class_reads_as_its_text_and_no_class_as_the_empty_text(pipeline: Path, tmp_path: Path) -> None:
    conditioner = class_texts(pipeline)
    message = conditioner.ready(tmp_path / "run", CLASSES)
    assert (
        message == f"class texts: 3 such as 'a photo of a cat' encoded by CLIPText, kept in {tmp_path / 'run' / FILE}"
    )
    assert (conditioner.tokens, conditioner.context_dim, conditioner.null_label) == (POSITIONS, WIDTH, 5)
    label_B = torch.tensor([2, 0, 5, 1])
    conditioning = conditioner(label_B)
    expected = clip_text(pipeline).encode([TEXTS[2], TEXTS[0], "", TEXTS[1]]).tokens_BSD
    torch.testing.assert_close(conditioning.tokens_BSD, rounded(expected), atol=1e-3, rtol=0)
    assert conditioning.tokens_BSD.dtype == torch.float32
    assert conditioning.mask_BS is None
    assert torch.equal(conditioner.unconditional(label_B).tokens_BSD, conditioning.tokens_BSD[[2]].expand(4, -1, -1))


def test_texts_are_the_same_over_batches(tmp_path: Path) -> None:
    classes = tuple(f"{first}{second}" for first in "abcdefgh" for second in "klmnopq")
    minilm = MiniLM(tokens=9)
    conditioner = ClassTexts(minilm, "{name}", num_classes=len(classes))
    conditioner.ready(tmp_path, classes)
    conditioning = conditioner(torch.arange(len(classes)))
    states = minilm.encode(classes)
    assert conditioning.mask_BS is not None
    assert states.mask_BS is not None
    assert torch.equal(conditioning.mask_BS, states.mask_BS)
    assert conditioner.unconditional(torch.tensor([0])).mask_BS.tolist() == [[True] * 2 + [False] * 7]  # type: ignore[union-attr]
    torch.testing.assert_close(conditioning.tokens_BSD, rounded(states.tokens_BSD), atol=2e-3, rtol=0)


def test_later_sessions_need_no_weights(pipeline: Path, tmp_path: Path) -> None:
    first = class_texts(pipeline)
    first.ready(tmp_path, CLASSES)
    with safe_open(tmp_path / FILE, "pt") as opened:
        assert opened.metadata()["fingerprint"] == clip_text(pipeline).fingerprint()
    (pipeline / "text_encoder" / "model.safetensors").unlink()
    later = class_texts(pipeline)
    assert later.ready(tmp_path, CLASSES) == f"class texts: {tmp_path / FILE}"
    labels = torch.tensor([0, 1, 2, 5])
    assert torch.equal(later(labels).tokens_BSD, first(labels).tokens_BSD)
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        later.ready(tmp_path / "elsewhere", CLASSES)


def test_masks_are_kept_with_the_run(tmp_path: Path) -> None:
    first, later = (ClassTexts(MiniLM(tokens=8), num_classes=2) for _ in range(2))
    first.ready(tmp_path, ("dog", "fire truck"))
    later.ready(tmp_path, ("dog", "fire truck"))
    expected, found = first(torch.tensor([0, 1, 2])), later(torch.tensor([0, 1, 2]))
    assert found.mask_BS.sum(1).tolist() == [6, 7, 2]
    assert torch.equal(found.mask_BS, expected.mask_BS)
    assert torch.equal(found.tokens_BSD, expected.tokens_BSD)


@pytest.mark.parametrize(
    ("classes", "template", "message"),
    [
        (("cat", "dog"), "a photo of {name}", "holds 3 classes, the data has 2; use the run's own"),
        (("dog", "cat", "a_cat"), "a photo of {name}", "holds 'a photo of cat' for class 0, not 'a photo of dog'"),
        (CLASSES, "a {name}", "holds 'a photo of cat' for class 0, not 'a cat'"),
    ],
)
def test_states_of_other_texts_are_refused(
    classes: tuple[str, ...], template: str, message: str, pipeline: Path, tmp_path: Path
) -> None:
    class_texts(pipeline).ready(tmp_path, CLASSES)
    with pytest.raises(ValueError, match=message):
        class_texts(pipeline, template).ready(tmp_path, classes)


def test_states_of_another_encoder_are_refused(pipeline: Path, tmp_path: Path) -> None:
    class_texts(pipeline).ready(tmp_path, CLASSES)
    with pytest.raises(ValueError, match="was made by another text encoder; use the run's own"):
        ClassTexts(MiniLM()).ready(tmp_path, CLASSES)


def test_the_share_of_lost_labels_reads_as_no_class(pipeline: Path, tmp_path: Path) -> None:
    conditioner = class_texts(pipeline, dropout=0.25)
    conditioner.ready(tmp_path, CLASSES)
    label_B = torch.full((4000,), 1)
    tokens = conditioner(conditioner.drop(label_B, 0, torch.arange(4000))).tokens_BSD
    lost = (tokens == conditioner.unconditional(label_B).tokens_BSD).all(dim=(1, 2)).float().mean().item()
    assert lost == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)


def test_nothing_is_trained_or_checkpointed_and_the_table_moves_along(pipeline: Path, tmp_path: Path) -> None:
    conditioner = class_texts(pipeline)
    conditioner.ready(tmp_path, CLASSES)
    assert not conditioner.state_dict()
    assert not list(conditioner.parameters())
    assert [name for name, _ in conditioner.named_modules()] == [""]
    assert conditioner.states_NSD.dtype == torch.float16
    assert conditioner.to("meta").states_NSD.device.type == "meta"
    masked = ClassTexts(MiniLM(tokens=8), num_classes=1)
    masked.ready(tmp_path / "masked", ("dog",))
    assert not masked.state_dict()
    assert masked.to("meta").mask_NS.device.type == "meta"  # type: ignore[union-attr]


def test_a_label_without_a_text_is_an_error(pipeline: Path, tmp_path: Path) -> None:
    conditioner = class_texts(pipeline)
    with pytest.raises(ValueError, match=r"call ready\(\) first"):
        conditioner(torch.tensor([0]))
    conditioner.ready(tmp_path, CLASSES)
    with pytest.raises(IndexError):
        conditioner(torch.tensor([3]))


def test_what_makes_no_sense_is_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"template is 'a photo'; it must say .* goes: \{name\}"):
        class_texts(pipeline, "a photo")
    with pytest.raises(ValueError, match=r"dropout is 1.0"):
        class_texts(pipeline, dropout=1.0)
    with pytest.raises(ValueError, match="the classes a_cat and a-cat both read 'a photo of a cat'; rename"):
        class_texts(pipeline).ready(tmp_path, ("a_cat", "dog", "a-cat"))
    assert not (tmp_path / FILE).exists()
