"""What the table's number takes: images a second times a schedule."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.models.count import TRAINING_FLOPS_A_MAC, Cost
from snapgen_pl.tables.declared import CLASS_TEXT_TOKENS, declared_cost
from snapgen_pl.tables.layout import Table, number

BATCH = 256
SCHEDULES = {
    "400K steps, the peers' anchor without guidance": 400_000,
    "7M steps, what SiT-XL's 2.06 took": 7_000_000,
}
# Dense bf16, as the makers state them.
PEAKS = {"H100": 989e12, "A100": 312e12}
ASSUMED_MFU = 0.35

NOTES = f"""\
Images of {BATCH} a step, the network's forward and backward alone: latents are encoded before, samples and validation
come on top. SnapGen's own schedule is not known. *Assumed* speeds are {ASSUMED_MFU:.0%} of the dense bf16 peak, by
6 FLOPs a multiply-accumulate, and were not measured; *measured* ones are of a record in experiments/results."""


class CostRow(NamedTuple):
    """A schedule on a device.

    Attributes:
        model: whose network.
        schedule: how long.
        device: on what.
        basis: ``measured`` or ``assumed``.
        images_per_s: training speed of one device.
        hours: of one device; N devices take a share of it each.
    """

    model: str
    schedule: str
    device: str
    basis: str
    images_per_s: float
    hours: float


def cost(records: Path) -> list[CostRow]:
    """Every schedule for SnapGen and DiT-XL, on devices assumed, and on those that a record is of.

    Args:
        records: folder with ``unet_cpu.json`` and ``unet_cuda.json``, as ``python -m benchmarks.unet`` writes them.
    """
    folder = experiments_dir() / "imagenet256"
    snapgen = declared_cost(folder / "ablation" / "8_reference.yaml", size=32, tokens=CLASS_TEXT_TOKENS)
    dit = declared_cost(folder / "peers" / "dit_xl.yaml", size=32, tokens=1)
    speeds = [*_assumed("SnapGen", snapgen), *_assumed("DiT-XL", dit), *_measured(records)]
    return [
        CostRow(model, schedule, device, basis, round(speed, 3), round(steps * BATCH / speed / 3600, 1))
        for model, device, basis, speed in speeds
        for schedule, steps in SCHEDULES.items()
    ]


def cost_table(reports: Path | None) -> Table:
    """Hours of one device."""
    rows = cost(reports or experiments_dir() / "results")
    cells = [
        (
            f"{row.model}, {row.schedule}",
            row.device,
            row.basis,
            number(row.images_per_s, 2 if row.images_per_s < 10 else 0),
            f"{row.hours:,.0f}",
        )
        for row in rows
    ]
    header = ("schedule", "device", "speed is", "images/s", "device hours")
    return Table([row._asdict() for row in rows], header, cells, NOTES)


def _assumed(model: str, counted: Cost) -> list[tuple[str, str, str, float]]:
    flops = TRAINING_FLOPS_A_MAC * counted.macs
    return [(model, device, "assumed", ASSUMED_MFU * peak / flops) for device, peak in PEAKS.items()]


def _measured(records: Path) -> list[tuple[str, str, str, float]]:
    models = {"snapgen": "SnapGen", "dit_xl_2": "DiT-XL"}
    found: list[tuple[str, str, str, float]] = []
    if (file := records / "unet_cpu.json").exists():
        record = json.loads(file.read_text(encoding="utf-8"))
        where = record["environment"]
        device = f"{where['processor']}, threads: {where['threads']}"
        for key, model in models.items():
            if timing := record["training"].get(key):
                found.append((model, device, "measured", record["batch"] / timing["wall_median_s"]))
    if (file := records / "unet_cuda.json").exists():
        record = json.loads(file.read_text(encoding="utf-8"))
        for key, model in models.items():
            speeds = [row["images_per_s"] for row in record["rows"].get(key, []) if _as_trained(row)]
            if speeds:
                found.append((model, record["environment"]["accelerator"], "measured", max(speeds)))
    return found


def _as_trained(row: Mapping[str, Any]) -> bool:
    """Whether a measurement is of a step as ``fit`` takes it, and fitted into memory."""
    graphed = row.get("graphed", False)  # older records know no graphs
    return row["task"] == "training" and row["compiled"] and not graphed and row["images_per_s"] is not None
