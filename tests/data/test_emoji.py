import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from snapgen_pl.data.emoji import Emoji, EmojiSet
from snapgen_pl.data.emoji.vendored import FOLDER, STYLES, Vendored
from snapgen_pl.data.source import OpenSource
from snapgen_pl.experiments import experiments_dir


@pytest.fixture(scope="module")
def emoji() -> OpenSource:
    return Emoji().open()


def sets(source: OpenSource) -> tuple[EmojiSet, EmojiSet]:
    assert isinstance(source.train, EmojiSet)
    assert isinstance(source.validation, EmojiSet)
    return source.train, source.validation


def test_a_held_out_concept_is_in_training_in_no_style(emoji: OpenSource) -> None:
    train, validation = sets(emoji)
    held_out = {concept.code for concept in validation.concepts}
    assert not held_out & {concept.code for concept in train.concepts}
    assert len(validation) == len(held_out) * len(STYLES)
    assert len(train) + len(validation) == 1570 * len(STYLES)
    assert 0.08 < len(held_out) / 1570 < 0.12


def test_the_held_out_concepts_do_not_depend_on_styles_and_level(emoji: OpenSource) -> None:
    _, validation = sets(emoji)
    _, of_one_style = sets(Emoji(styles=("twemoji",), level="group").open())
    assert {concept.code for concept in of_one_style.concepts} == {concept.code for concept in validation.concepts}


@pytest.mark.parametrize(("level", "kinds"), [("group", 9), ("subgroup", 95)])
def test_every_class_has_training_images_and_names_kind_and_style(level: str, kinds: int) -> None:
    source = Emoji(styles=("noto", "fluent-3d"), level=level).open()  # type: ignore[arg-type]
    train, validation = sets(source)
    assert len(source.classes) == len(set(source.classes)) == 2 * kinds
    assert set(train.labels.tolist()) == set(range(len(source.classes)))
    for images in (train, validation):
        for index in range(0, len(images), 97):
            kind = getattr(images.concepts[index], level)
            assert source.classes[int(images.labels[index])] == f"{kind}, {images.styles[index]}"


def test_captions_say_what_is_shown_and_how(emoji: OpenSource) -> None:
    train, _ = sets(emoji)
    assert train.caption(0) == "a grinning face, noto style"
    assert "smile" in train.concepts[0].tags
    assert train.load(0).size == (64, 64)


def test_no_cell_is_empty_and_every_style_draws_a_concept_in_its_own_way() -> None:
    vendored = Vendored()
    concepts = vendored.concepts()
    sheets = [vendored.images(style, len(concepts)) for style in STYLES]
    for image_BHWC in sheets:
        flat = image_BHWC.flatten(1).float()
        assert (flat.std(dim=1) > 1).all()
        # Twemoji's window alone fills its cell.
        assert (flat.max(dim=1).values < 255).sum() <= 1
    for other in sheets[1:]:
        assert (sheets[0] != other).flatten(1).any(dim=1).all()


def test_cells_are_cut_at_their_borders() -> None:
    """The plus sign is symmetric; it would not be in a sheet cut anywhere else."""
    vendored = Vendored()
    concepts = vendored.concepts()
    index = [concept.label for concept in concepts].index("plus")
    plus = vendored.images("twemoji", len(concepts))[index].int()
    assert (plus - plus.flip(1)).abs().max() < 24
    assert (plus - plus.flip(0)).abs().max() < 24


def test_every_vendored_file_has_its_checksum_and_its_licence() -> None:
    checksums = json.loads((FOLDER / "sha256.json").read_text())
    for name, expected in checksums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == expected, name
    vendored = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in (".webp", ".txt")}
    assert vendored <= set(checksums)
    attribution = (FOLDER / "licenses" / "ATTRIBUTION.md").read_text()
    for name in vendored:
        assert Path(name).name in attribution
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 15_000_000


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("concepts.json", "sha256.json", "twemoji.webp"):
        shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["concepts.json", "twemoji.webp"])
def test_a_flipped_byte_is_found_and_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its SHA-256 is \w+, expected \w+; reinstall"):
        Emoji(styles=("twemoji",), folder=copy).open()


def test_a_missing_sheet_is_named(copy: Path) -> None:
    with pytest.raises(ValueError, match=r"noto\.webp is missing; reinstall"):
        Emoji(styles=("noto",), folder=copy).open()


@pytest.mark.parametrize("styles", [(), ("noto", "noto"), ("openmoji",)])
def test_wrong_styles_are_refused(styles: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="styles must be some of noto, fluent-flat, fluent-3d, twemoji"):
        Emoji(styles=styles)  # type: ignore[arg-type]


def test_the_fingerprint_tells_styles_and_levels_apart() -> None:
    sources = [Emoji(("noto",)), Emoji(("twemoji",)), Emoji(("noto",), "group")]
    assert len({source.open().fingerprint for source in sources}) == 3
    assert sources[0].open().fingerprint == sources[0].open().fingerprint


def test_the_fingerprint_sees_another_wording_of_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is what reports and runs have written down, for the wording that they were made with."""
    before = Emoji(("noto",)).open()
    recorded = json.loads((experiments_dir() / "results" / "emoji_pretrain.json").read_text())
    assert Emoji().open().fingerprint == recorded["data"]
    monkeypatch.setattr("snapgen_pl.data.emoji.CAPTION", "{label} in {style}")
    after = Emoji(("noto",)).open()
    assert sets(after)[0].caption(0) == "grinning face in noto"
    assert after.fingerprint != before.fingerprint


def test_a_picture_is_drawn_centred_with_its_aspect_kept() -> None:
    pytest.importorskip("resvg_py")
    from snapgen_pl.data.emoji.build import cell, draw_svg
    from snapgen_pl.data.transforms import to_pixels

    # A black box in the middle half of a canvas twice as wide as high: 32 x 16 pixels of the 64.
    pixels = to_pixels(cell(draw_svg('<rect x="2" y="1" width="4" height="2"/>', 8, 4)))
    expected = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    expected[:, 24:40, 16:48] = 0
    assert torch.equal(pixels, expected)


def test_transparent_pixels_become_white_whatever_their_colour() -> None:
    from PIL import Image

    from snapgen_pl.data.emoji.build import cell

    image = Image.new("RGBA", (256, 264), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (100, 100, 156, 164))
    red, green, blue = cell(image).split()
    assert (blue.getextrema(), red.getextrema(), green.getextrema()) == ((255, 255), (0, 255), (0, 255))
