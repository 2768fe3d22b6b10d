"""The way from SD3's decoder to SnapGen's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.digest import values_digest
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import Cost
from snapgen_pl.tables.declared import declared_autoencoder_cost, declared_decoder_cost
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import DECODERS
from snapgen_pl.tables.records import recipe, record_file
from snapgen_pl.whole_files import write_json

LATENT_SIZE = 128  # of an image of 1024 px
SIZES = (512, 1024)  # of held-out photographs, in pixels
OWN, TAESD, LONG, ADVERSARIAL = "own", "taesd", "long", "adversarial"
BESIDE = {  # rows that are not of the published ladder
    TAESD: "AutoencoderTiny's",
    LONG: "SnapGen, seven times the crops",
    ADVERSARIAL: "from there against a discriminator",
    OWN: "trained with the encoder",
}

LADDER, PHOTOGRAPHS = experiments_dir() / "decoder" / "ladder", experiments_dir() / "photographs"
LIST = PHOTOGRAPHS / "photographs.txt"
_AUTOENCODER, _BASE = PHOTOGRAPHS / "autoencoder.yaml", PHOTOGRAPHS / "decoder.yaml"
SPEED = experiments_dir() / "results" / "decoder_cpu.json"
# What each row that is trained is declared by; SDXL's has another encoder's latents.
FILES: dict[str, tuple[Path, ...]] = {OWN: (_AUTOENCODER,)}
FILES |= {each.key: (_BASE, LADDER / f"{each.file}.yaml") for each in DECODERS if each.channels == 16}
FILES |= {row: (_BASE, PHOTOGRAPHS / f"{row}.yaml") for row in (TAESD, LONG, ADVERSARIAL)}

NOTES = """\
Counted / published. Counted are the decoders of the YAML files in experiments/decoder/ladder, from latents of 16
channels, SDXL's of 4. The published "GFLOPs" are multiply-accumulates of an image of 1024 px; as published they hold
convolutions, linear layers, norms and upsampling, and leave the products of attention out. The steps are the paper's,
the shapes of all rungs below SD3 are decided here, fitted to the totals of the last. Published PSNRs, in dB, are of
other encoders and images. Measured are PSNR / SSIM / LPIPS (AlexNet's) of eight held-out photographs, squares of 512
and 1,024 px, whose latents one frozen encoder made, trained here on 29 others with half the widths of SD3's
(experiments/photographs). All rungs learned on L1, MSE and LPIPS from equal crops of these, one seed each."""


class DecoderRecord(NamedTuple):
    """One run of a row.

    Attributes:
        row: its key.
        seed: of the run.
        recipe: hash of what it was trained by, see :func:`recipe_of`.
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


class DecoderRow(NamedTuple):
    """A row of the table.

    Attributes:
        decoder: its key.
        params_m: millions of parameters, counted.
        params_m_published: as published.
        gflops_1024: billions of multiply-accumulates of an image of 1024 px, counted.
        gflops_1024_published: as published.
        psnr_published: in dB, as published.
        crops: that it was trained on here.
        psnr_512: in dB, of photographs of 512 px.
        ssim_512: likewise.
        lpips_512: likewise.
        psnr_1024: of photographs of 1,024 px.
        ssim_1024: likewise.
        lpips_1024: likewise.
        seconds_1024: of an image of 1024 px on one core, as recorded.
    """

    decoder: str
    params_m: float
    params_m_published: float | None
    gflops_1024: float
    gflops_1024_published: float | None
    psnr_published: float | None
    crops: int | None
    psnr_512: float | None
    ssim_512: float | None
    lpips_512: float | None
    psnr_1024: float | None
    ssim_1024: float | None
    lpips_1024: float | None
    seconds_1024: float | None


def recipe_of(row: str) -> str:
    """SHA-256 over all that declares a row, what it begins with, and the photographs."""
    before = {OWN: (), ADVERSARIAL: (_AUTOENCODER, *FILES[LONG])}.get(row, (_AUTOENCODER,))
    declared = recipe((*before, *FILES[row]))
    return values_digest({"recipe": declared, "photographs": LIST.read_text(encoding="utf-8")})


def decoders(records: Mapping[str, DecoderRecord], seconds: Mapping[str, float]) -> list[DecoderRow]:
    """Counts every decoder from its YAML: the published ladder, the reference last, and those beside it.

    Args:
        records: by a row's key.
        seconds: likewise.
    """
    published = {each.key: each for each in DECODERS}
    rows = []
    for key in (*published, *BESIDE):
        told, record, cost = published.get(key), records.get(key), _cost(key)
        small, large = (record.sizes[str(size)] if record else {} for size in SIZES)
        rows.append(
            DecoderRow(
                key,
                round(cost.params_m, 4),
                told and told.params_m,
                round(cost.gmacs, 2),
                told and told.gflops,
                told and told.psnr,
                record and record.crops,
                small.get("psnr"),
                small.get("ssim"),
                small.get("lpips"),
                large.get("psnr"),
                large.get("ssim"),
                large.get("lpips"),
                seconds.get(key),
            )
        )
    return rows


def _cost(key: str) -> Cost:
    if key == OWN:
        return declared_autoencoder_cost(_AUTOENCODER, size=LATENT_SIZE)
    if key == "sdxl":
        return declared_decoder_cost(*FILES["sd3"], size=LATENT_SIZE, in_channels=4)
    return declared_decoder_cost(*FILES[key], size=LATENT_SIZE)


def read_decoder_records(folder: Path) -> dict[str, DecoderRecord]:
    """The records of a folder by row, the lowest seed's of each.

    Raises:
        ValueError: for a file that is no record, or of another recipe than today's, or where the records are of several
            encoders.
    """
    found: list[DecoderRecord] = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = DecoderRecord(**json.loads(file.read_text(encoding="utf-8")))
            declared = recipe_of(record.row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of a decoder: {error!r}") from error
        if record.recipe != declared:
            raise ValueError(
                f"{file}: trained by another recipe than {', '.join(map(str, FILES[record.row]))} declare now; delete "
                "it and its run, and run `make photographs`"
            )
        found.append(record)
    if len({record.autoencoder for record in found}) > 1:
        raise ValueError(f"the records in {folder} are of several encoders; make them anew from one")
    by_seed = sorted(found, key=lambda record: -record.seed)
    return {record.row: record for record in by_seed}


def read_seconds(file: Path) -> dict[str, float]:
    """Seconds of process time of an image of 1,024 px, by row, from a record of ``benchmarks.decoder``."""
    if not file.exists():
        return {}
    timings = json.loads(file.read_text(encoding="utf-8"))["sizes"].get("1024", {}).get("timings", {})
    return {row: timing["cpu_min_s"] for row, timing in timings.items()}


def decoder_table(reports: Path | None) -> Table:
    """Counted, published and measured figures side by side."""
    records = read_decoder_records(reports or experiments_dir() / "results" / "decoder")
    rows = decoders(records, read_seconds(SPEED))
    names = {each.key: each.rung for each in DECODERS} | BESIDE
    sizes = [f"{size} px" for size in SIZES]
    header = ("decoder", "params M", "GFLOPs 1024 px", "PSNR published", "crops", *sizes, "seconds 1024 px")
    cells = [
        (
            names[row.decoder],
            _beside(f"{row.params_m:.2f}", row.params_m_published, 2),
            _beside(f"{row.gflops_1024:.0f}", row.gflops_1024_published, 0),
            number(row.psnr_published, 2),
            number(row.crops, 0),
            _quality(row.psnr_512, row.ssim_512, row.lpips_512),
            _quality(row.psnr_1024, row.ssim_1024, row.lpips_1024),
            number(row.seconds_1024, 2),
        )
        for row in rows
    ]
    return Table([row._asdict() for row in rows], header, cells, NOTES)


def _quality(psnr: float | None, ssim: float | None, lpips: float | None) -> str:
    return "" if psnr is None else f"{psnr:.2f} / {ssim:.3f} / {lpips:.3f}"


def _beside(counted: str, published: float | None, digits: int) -> str:
    return f"{counted} / {'-' if published is None else f'{published:.{digits}f}'}"
