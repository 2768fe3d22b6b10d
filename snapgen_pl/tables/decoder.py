"""The way from SD3's decoder to SnapGen's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import Cost
from snapgen_pl.tables.declared import declared_autoencoder_cost, declared_decoder_cost
from snapgen_pl.tables.decoder_records import ADVERSARIAL, FULL, LONG, OWN, SMALL, TAESD, DecoderRecord, Scale
from snapgen_pl.tables.layout import Table, number
from snapgen_pl.tables.published import DECODERS

LATENT_SIZE = 128  # of an image of 1024 px
SIZES = (512, 1024)  # of held-out photographs, in pixels
BESIDE = {  # rows that are not of the published ladder
    TAESD: "AutoencoderTiny's",
    LONG: "SnapGen, for longer",
    ADVERSARIAL: "from there against a discriminator",
    OWN: "trained with the encoder",
}
SPEED = experiments_dir() / "results" / "decoder_cpu.json"

NOTES = """\
Counted / published. Counted are the decoders of the YAML files in experiments/decoder/ladder, from latents of 16
channels, SDXL's of 4. The published "GFLOPs" are multiply-accumulates of an image of 1024 px; as published they hold
convolutions, linear layers, norms and upsampling, and leave the products of attention out. The steps are the paper's,
the shapes of all rungs below SD3 are decided here, fitted to the totals of the last. Published PSNRs, in dB, are of
other encoders and images. Measured are PSNR / SSIM / LPIPS (AlexNet's) of eight held-out photographs, squares of 512
and 1,024 px, whose latents one frozen encoder made, trained here on 29 others with half the widths of SD3's
(experiments/photographs). All rungs learned on L1, MSE and LPIPS from equal crops of these, one seed each."""

NOTES_SMALL = """\
All widths a quarter of those above, SD3's encoder included, trained on a CPU from fewer and smaller crops of the same
photographs (experiments/photographs/small); PSNR / SSIM / LPIPS as above, one seed each."""


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


def decoders(scale: Scale, records: Mapping[str, DecoderRecord], seconds: Mapping[str, float]) -> list[DecoderRow]:
    """Counts every decoder from its YAML: the ladder, the reference last, and those beside it.

    Args:
        scale: whose YAML; published figures stand beside FULL's.
        records: by a row's key.
        seconds: likewise.
    """
    ladder = {each.key: each for each in DECODERS if scale is FULL or each.channels == 16}
    published = ladder if scale is FULL else {}
    rows = []
    for key in (*ladder, *BESIDE):
        told, record, cost = published.get(key), records.get(key), _cost(scale, key)
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


def _cost(scale: Scale, key: str) -> Cost:
    if key == OWN:
        return declared_autoencoder_cost(*scale.autoencoder, size=LATENT_SIZE)
    if key == "sdxl":
        return declared_decoder_cost(*scale.files("sd3"), size=LATENT_SIZE, in_channels=4)
    return declared_decoder_cost(*scale.files(key), size=LATENT_SIZE)


def read_seconds(file: Path) -> dict[str, float]:
    """Seconds of process time of an image of 1,024 px, by row, from a record of ``benchmarks.decoder``."""
    if not file.exists():
        return {}
    timings = json.loads(file.read_text(encoding="utf-8"))["sizes"].get("1024", {}).get("timings", {})
    return {row: timing["cpu_min_s"] for row, timing in timings.items()}


def decoder_table(reports: Path | None) -> Table:
    """Counted, published and measured figures side by side."""
    rows = decoders(FULL, FULL.records(reports or FULL.results), read_seconds(SPEED))
    header = ("decoder", "params M", "GFLOPs 1024 px", "PSNR published", "crops", *_SIZES, "seconds 1024 px")
    cells = [
        (
            _NAMES[row.decoder],
            _beside(f"{row.params_m:.2f}", row.params_m_published, 2),
            _beside(f"{row.gflops_1024:.0f}", row.gflops_1024_published, 0),
            number(row.psnr_published, 2),
            number(row.crops, 0),
            *_qualities(row),
            number(row.seconds_1024, 2),
        )
        for row in rows
    ]
    return Table([row._asdict() for row in rows], header, cells, NOTES)


def decoder_small_table(reports: Path | None) -> Table:
    """The same in small, as it was trained on a CPU."""
    rows = decoders(SMALL, SMALL.records(reports or SMALL.results), {})
    header = ("decoder", "params M", "GFLOPs 1024 px", "crops", *_SIZES)
    cells = [
        (
            _NAMES[row.decoder],
            f"{row.params_m:.3f}",
            f"{row.gflops_1024:.1f}",
            number(row.crops, 0),
            *_qualities(row),
        )
        for row in rows
    ]
    return Table([row._asdict() for row in rows], header, cells, NOTES_SMALL)


_NAMES = {each.key: each.rung for each in DECODERS} | BESIDE
_SIZES = [f"{size} px" for size in SIZES]


def _qualities(row: DecoderRow) -> tuple[str, str]:
    return (
        _quality(row.psnr_512, row.ssim_512, row.lpips_512),
        _quality(row.psnr_1024, row.ssim_1024, row.lpips_1024),
    )


def _quality(psnr: float | None, ssim: float | None, lpips: float | None) -> str:
    return "" if psnr is None else f"{psnr:.2f} / {ssim:.3f} / {lpips:.3f}"


def _beside(counted: str, published: float | None, digits: int) -> str:
    return f"{counted} / {'-' if published is None else f'{published:.{digits}f}'}"
