"""Decoders trained on photographs: what declares each, at either scale, and what was recorded of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.digest import values_digest
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.tables.published import DECODERS
from snapgen_pl.tables.records import recipe, record_file
from snapgen_pl.whole_files import write_json

OWN, TAESD, LONG, ADVERSARIAL = "own", "taesd", "long", "adversarial"

LADDER, PHOTOGRAPHS = experiments_dir() / "decoder" / "ladder", experiments_dir() / "photographs"
LIST = PHOTOGRAPHS / "photographs.txt"
_RUNGS = {each.key: f"{each.file}.yaml" for each in DECODERS if each.channels == 16}  # SDXL's has other latents
ROWS = (OWN, *_RUNGS, TAESD, LONG, ADVERSARIAL)


class Scale(NamedTuple):
    """A size of the experiment on photographs.

    Attributes:
        suffix: of the folders of its runs and records.
        autoencoder: what declares the autoencoder, each file a delta to those before.
        decoder: likewise what is common to all decoders.
        ladder: the folder of rungs.
        beside: the folder of what is compared with them.
        reference: what comes before the rows that go on from the reference.
    """

    suffix: str
    autoencoder: tuple[Path, ...]
    decoder: tuple[Path, ...]
    ladder: Path
    beside: Path
    reference: tuple[Path, ...]

    @property
    def results(self) -> Path:
        """The folder of records."""
        return experiments_dir() / "results" / f"decoder{self.suffix}"

    def files(self, row: str) -> tuple[Path, ...]:
        """What a row is declared by, each a delta to those before.

        Raises:
            KeyError: where there is no such row.
        """
        if row == OWN:
            return self.autoencoder
        if row == TAESD:
            return (*self.decoder, self.beside / "taesd.yaml")
        if row in (LONG, ADVERSARIAL):
            return (*self.decoder, *self.reference, self.beside / f"{row}.yaml")
        return (*self.decoder, self.ladder / _RUNGS[row])

    def recipe(self, row: str) -> str:
        """SHA-256 over all that declares a row, what it begins with, and the photographs."""
        before = {OWN: (), ADVERSARIAL: (*self.autoencoder, *self.files(LONG))}.get(row, self.autoencoder)
        declared = recipe((*before, *self.files(row)))
        return values_digest({"recipe": declared, "photographs": LIST.read_text(encoding="utf-8")})

    def records(self, folder: Path) -> "dict[str, DecoderRecord]":
        """The records of a folder by row, the lowest seed's of each.

        Raises:
            ValueError: for a file that is no record, or of another recipe than today's, or where the records are of
                several encoders.
        """
        found: list[DecoderRecord] = []
        for file in sorted(folder.glob("*.json")):
            try:
                record = DecoderRecord(**json.loads(file.read_text(encoding="utf-8")))
                declared = self.recipe(record.row)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} is no record of a decoder: {error!r}") from error
            if record.recipe != declared:
                files = ", ".join(map(str, self.files(record.row)))
                raise ValueError(
                    f"{file}: trained by another recipe than {files} declare now; delete it and its run, and run "
                    "`make photographs`"
                )
            found.append(record)
        if len({record.autoencoder for record in found}) > 1:
            raise ValueError(f"the records in {folder} are of several encoders; make them anew from one")
        by_seed = sorted(found, key=lambda record: -record.seed)
        return {record.row: record for record in by_seed}


_AUTOENCODER, _DECODER = PHOTOGRAPHS / "autoencoder.yaml", PHOTOGRAPHS / "decoder.yaml"
_SMALL = PHOTOGRAPHS / "small"
FULL = Scale("", (_AUTOENCODER,), (_DECODER,), LADDER, PHOTOGRAPHS, ())
# For a CPU: all widths a quarter, fewer and smaller crops.
SMALL = Scale(
    "_small",
    (_AUTOENCODER, _SMALL / "autoencoder.yaml"),
    (_DECODER, _SMALL / "decoder.yaml"),
    _SMALL / "ladder",
    _SMALL,
    (_SMALL / "ladder" / _RUNGS["snapgen"],),
)


class DecoderRecord(NamedTuple):
    """One run of a row.

    Attributes:
        row: its key.
        seed: of the run.
        recipe: hash of what it was trained by, see :meth:`Scale.recipe`.
        crops: that it was trained on in this run.
        training_seconds: without validation.
        machine: that trained it.
        date: of the run's last start, UTC.
        commit: of the code then; None outside a git checkout.
        autoencoder: SHA-256 over the weights whose latents it decodes.
        sizes: what was measured, by the size of photographs in pixels.
    """

    row: str
    seed: int
    recipe: str
    crops: int
    training_seconds: float
    machine: str
    date: str
    commit: str | None
    autoencoder: str
    sizes: Mapping[str, Mapping[str, float]]

    def write(self, folder: Path) -> Path:
        """Writes ``<row>-seed<n>.json``, whole or not at all."""
        path = record_file(folder, self.row, self.seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._asdict(), path)
        return path
