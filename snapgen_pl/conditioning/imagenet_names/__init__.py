"""What class names mean in words: ImageNet-1k's synsets, and names of folders."""

import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("names.tsv")
_SYNSET = re.compile(r"n\d{8}")


@cache
def imagenet_names() -> dict[str, str]:
    """The names of ImageNet-1k's 1,000 classes by synset, in the order of their labels; no two are the same."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def readable_name(class_name: str) -> str:
    """A class's name in words.

    Args:
        class_name: a synset of ImageNet-1k ("n01440764" is "tench"), or a name whose underscores and hyphens are read
            as spaces ("animal-bird, fluent-flat" is "animal bird, fluent flat").

    Raises:
        ValueError: for a synset that is none of the 1,000, or a name without a word.
    """
    if _SYNSET.fullmatch(class_name):
        if class_name not in imagenet_names():
            raise ValueError(
                f"class {class_name} is none of ImageNet-1k's 1,000 synsets, so its name is not known; name it, and "
                "its folder, by what it shows"
            )
        return imagenet_names()[class_name]
    name = " ".join(re.split(r"[\s_-]+", class_name)).strip()
    if not name:
        raise ValueError(f"class {class_name!r} has no word in its name; name it, and its folder, by what it shows")
    return name
