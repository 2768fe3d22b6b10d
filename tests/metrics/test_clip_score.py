from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from snapgen_pl.metrics.clip_score import CLIPScore
from snapgen_pl.metrics.feature_store import MemoryFeatures
from snapgen_pl.metrics.judge_network import resized
from snapgen_pl.png import to_pil
from tests.conditioning import tiny_clip
from tests.metrics.tiny_judges import features, images

LONG = "a photo of a cat and a dog and a cat and a dog"
ASKED = ["a photo of a cat", "a dog", LONG]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save_whole_clip(folder)
    return folder


@pytest.fixture(scope="module")
def metric(folder: Path) -> CLIPScore:
    metric = CLIPScore(str(folder))
    metric.prepare(torch.device("cpu"))
    return metric


def processor(folder: Path) -> CLIPProcessor:
    pil = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return CLIPProcessor(pil, CLIPTokenizer.from_pretrained(folder))


def test_cosines_are_those_of_a_direct_computation_and_long_texts_are_counted(metric: CLIPScore, folder: Path) -> None:
    image_BCHW = images(
        3, side=8
    )  # what CLIP takes: PIL rounds between its passes, and resized bytes may differ by one
    found = features(metric, image_BCHW, ASKED)
    network, prepare = CLIPModel.from_pretrained(folder).eval(), processor(folder)
    given = prepare(text=ASKED, images=[to_pil(image) for image in image_BCHW], return_tensors="pt", padding=True,
                    truncation=True, max_length=tiny_clip.POSITIONS)  # fmt: skip
    with torch.no_grad():
        output = network(**given)
    cosine_B = F.cosine_similarity(output.image_embeds, output.text_embeds)
    torch.testing.assert_close(found[:, 0], cosine_B, atol=1e-5, rtol=0)
    assert found[:, 1].tolist() == [0, 0, 1]
    values = metric.measure(MemoryFeatures(3, [{"clip": found[:2]}, {"clip": found[2:]}]))
    assert values["clip_score"].value == pytest.approx(float(cosine_B.mean()), abs=1e-5)
    assert values["clip_truncated"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 60), (61, 33), (5, 7)])
def test_images_are_resized_and_cropped_as_pil_does(height: int, width: int) -> None:
    image_CHW = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    shorter = min(height, width)
    size = 16 * width // shorter, 16 * height // shorter
    left, top = (round((length - 16) / 2) for length in size)
    theirs = to_pil(image_CHW).resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 16, top + 16))
    ours = resized(image_CHW[None], 16)[0].permute(1, 2, 0)
    assert (ours - torch.tensor(list(theirs.get_flattened_data())).view(16, 16, 3)).abs().max() <= 1


def test_missing_and_foreign_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        CLIPScore("nowhere").prepare(torch.device("cpu"))
    tiny_clip.save_pipeline(tmp_path)
    with pytest.raises(ValueError, match="is of the type clip_text_model, CLIPModel reads clip"):
        CLIPScore(str(tmp_path / "text_encoder")).prepare(torch.device("cpu"))
    with pytest.raises(ValueError, match="clip is not prepared"):
        CLIPScore(str(folder)).features(images(1), ["a cat"])
