import re

import pytest

from snapgen_pl.conditioning.imagenet_names import imagenet_names, readable_name
from snapgen_pl.data.emoji import Emoji


def test_there_are_a_thousand_names_in_the_order_of_labels() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in names)
    assert all(re.fullmatch(r"\w[\w .,'/()-]*[\w)]", name) for name in names.values())


def test_no_two_names_are_the_same_to_an_encoder_that_lowers_case() -> None:
    assert len({name.casefold() for name in imagenet_names().values()}) == 1000


@pytest.mark.parametrize(
    ("label", "synset", "name"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane bird"),
        (278, "n02119789", "kit fox"),
        (388, "n02510455", "giant panda"),
        (517, "n03126707", "construction crane"),
        (638, "n03710637", "tights"),
        (639, "n03710721", "one-piece bathing suit"),
        (657, "n03773504", "missile"),
        (744, "n04008634", "projectile"),
        (836, "n04355933", "sunglass"),
        (837, "n04356056", "sunglasses"),
        (999, "n15075141", "toilet paper"),
    ],
)
def test_a_synset_reads_as_its_name(label: int, synset: str, name: str) -> None:
    assert list(imagenet_names())[label] == synset
    assert readable_name(synset) == name


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("animal-bird, fluent-flat", "animal bird, fluent flat"),
        ("golden_retriever", "golden retriever"),
        ("_Cats & dogs--", "Cats & dogs"),
        ("n014", "n014"),
    ],
)
def test_other_names_are_read_as_words(class_name: str, name: str) -> None:
    assert readable_name(class_name) == name


def test_every_class_of_the_emoji_keeps_a_name_of_its_own() -> None:
    classes = Emoji().open().classes
    assert len({readable_name(name) for name in classes}) == len(classes)


@pytest.mark.parametrize(("class_name", "message"), [("n00004475", "none of ImageNet-1k's"), ("--", "no word")])
def test_what_has_no_name_is_refused(class_name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        readable_name(class_name)
