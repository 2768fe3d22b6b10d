"""Writes the vendored names: ``python -m snapgen_pl.conditioning.imagenet_names.build --packages DIR``.

The names are those that CLIP's authors chose for zero-shot classification: they say "crane bird" and "construction
crane" where WordNet says "crane" twice. The synsets, and WordNet's words for them, come from timm.
"""

import argparse
import ast
import hashlib
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.conditioning.imagenet_names import FILE
from snapgen_pl.whole_files import write_text


class Wheel(NamedTuple):
    """A package of the Python index, pinned.

    Attributes:
        name: as in the wheel's file name.
        version: of the release.
        sha256: of the wheel.
    """

    name: str
    version: str
    sha256: str

    def read(self, folder: Path, member: str) -> str:
        """The text of a file in the wheel, which is fetched into ``folder`` unless it lies there already."""
        path = folder / f"{self.name}-{self.version}-py3-none-any.whl"
        if not path.exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
            subprocess.run([*pip, f"{self.name}=={self.version}"], check=True)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path} has the SHA-256 {found}, expected {self.sha256}; delete it to fetch it again")
        with zipfile.ZipFile(path) as opened:
            return opened.read(member).decode()


OPEN_CLIP = Wheel("open_clip_torch", "3.3.0", "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce")
TIMM = Wheel("timm", "1.0.31", "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7")


def names(folder: Path) -> dict[str, str]:
    """A name a synset, in the order of the synsets."""
    synsets = TIMM.read(folder, "timm/data/_info/imagenet_synsets.txt").split()
    lines = TIMM.read(folder, "timm/data/_info/imagenet_synset_to_lemma.txt").splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    chosen = _literal(OPEN_CLIP.read(folder, "open_clip/zero_shot_metadata.py"), "IMAGENET_CLASSNAMES")
    # Two names stand for two classes each (missile, sunglasses): WordNet's words tell those apart.
    count = Counter(chosen)
    return {
        synset: lemmas[synset].split(", ")[0] if count[name] > 1 else name
        for synset, name in zip(synsets, chosen, strict=True)
    }


def _literal(source: str, name: str) -> tuple[str, ...]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            value: tuple[str, ...] = ast.literal_eval(node.value)
            return value
    raise ValueError(f"open_clip defines no {name}; use the release that this script pins")


def main() -> None:
    """Fetches what is missing and writes the names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder for the wheels")
    folder = parser.parse_args().packages
    folder.mkdir(parents=True, exist_ok=True)
    write_text("".join(f"{synset}\t{name}\n" for synset, name in names(folder).items()), FILE)


if __name__ == "__main__":
    main()
