"""From captions to stored states that training reads: the command line, real classes, small sizes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from snapgen_pl.__main__ import main
from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.data.captioned_folder import CaptionedFolder
from snapgen_pl.data.conditions import Captioned
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.shards import MANIFEST

CAPTIONS = [f"a photo of {'very ' * (i % 5)}small bird number {i}" for i in range(30)]
TOKENS = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / f"{i:02d}.png")
        (root / f"{i:02d}.txt").write_text(caption, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def encoded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    source = {"class_path": "snapgen_pl.data.captioned_folder.CaptionedFolder", "init_args": {"root": str(photos)}}
    config = {
        "name": "minilm",
        "runs": str(runs),
        "model": {
            "class_path": "snapgen_pl.modules.encode_texts.EncodeTexts",
            "init_args": {
                "encoder": {"class_path": "snapgen_pl.conditioning.minilm.MiniLM", "init_args": {"tokens": TOKENS}}
            },
        },
        "data": {
            "class_path": "snapgen_pl.data.encoding_data.EncodingData",
            "init_args": {"source": source, "read": "caption", "batch_size": 7, "shard_size": 16},
        },
        "trainer": {"accelerator": "cpu", "callbacks": [{"class_path": "callbacks.shard_writer.ShardWriter"}]},
    }
    file = runs / "encode.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["predict", "--config", str(file)]) == 0
    return runs / "minilm" / "texts"


def data(photos: Path, encoded: Path) -> ImageData:
    return ImageData(
        CaptionedFolder(photos), image_size=8, batch_size=6, condition="caption", text_states={"minilm": str(encoded)}
    )


def test_stored_states_are_the_encoders_own(photos: Path, encoded: Path) -> None:
    opened = data(photos, encoded)
    opened.setup("fit")
    encoder = MiniLM(tokens=TOKENS)
    opened.check_encoders({"minilm": encoder.identity})
    for loader in (opened.train_dataloader(), opened.val_dataloader()):
        condition = next(iter(loader)).condition
        assert isinstance(condition, Texts)
        expected, found = encoder.encode(condition.captions), condition.states["minilm"]
        assert found.mask_BS is not None
        assert expected.mask_BS is not None
        assert torch.equal(found.mask_BS, expected.mask_BS)
        assert found.mask_BS.sum(dim=1).unique().numel() > 1
        kept = expected.mask_BS[:, :, None]
        torch.testing.assert_close(found.tokens_BSD.float(), expected.tokens_BSD * kept, atol=2e-3, rtol=2e-3)


def test_padding_is_not_stored(encoded: Path) -> None:
    size = sum(file.stat().st_size for file in encoded.glob("*.safetensors"))
    assert size < len(CAPTIONS) * TOKENS * 384 * 2 * 0.8


def test_captions_of_other_data_are_refused(photos: Path, encoded: Path, tmp_path: Path) -> None:
    images = CaptionedFolder(photos).open().train
    assert isinstance(images, Captioned)
    other = tmp_path / "other"
    other.mkdir()
    for file in photos.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "03.txt").write_text("another caption")
    with pytest.raises(ValueError, match="are of other images or captions than the data's"):
        data(other, encoded).setup("fit")


def test_states_of_another_encoder_or_for_none_are_refused(photos: Path, encoded: Path) -> None:
    opened = data(photos, encoded)
    opened.setup("fit")
    with pytest.raises(ValueError, match="are of another encoder than the run's minilm"):
        opened.check_encoders({"minilm": MiniLM(tokens=TOKENS + 1).identity})
    with pytest.raises(ValueError, match="states of 'minilm', which no encoder of the model is called"):
        opened.check_encoders({"clip": "x"})


def test_damaged_states_are_refused_before_training(photos: Path, encoded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for file in encoded.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shard = folder / "train-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00001\.safetensors is damaged: its content is not what was written"):
        data(photos, folder).setup("fit")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["format"] = "snapgen_pl latents 1"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not of format 'snapgen_pl text states 1'"):
        data(photos, folder).setup("predict")


def test_states_need_captions_to_be_asked_for(photos: Path, encoded: Path) -> None:
    with pytest.raises(ValueError, match="text_states are of captions, but condition is label"):
        ImageData(CaptionedFolder(photos), text_states={"minilm": str(encoded)})
