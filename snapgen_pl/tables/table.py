"""The verb ``table``."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from snapgen_pl.tables.ablation import ablation_table
from snapgen_pl.tables.cost import cost_table
from snapgen_pl.tables.decoder import decoder_small_table, decoder_table
from snapgen_pl.tables.distillation import distillation_table
from snapgen_pl.tables.emoji import emoji_table
from snapgen_pl.tables.imagenet256 import imagenet256_table
from snapgen_pl.tables.latency import latency_table
from snapgen_pl.tables.layout import Format, Table
from snapgen_pl.tables.steps import steps_table
from snapgen_pl.tables.t2i import t2i_table
from snapgen_pl.tables.training import training_table

Name: TypeAlias = Literal[
    "imagenet256",
    "ablation",
    "t2i",
    "emoji",
    "distillation",
    "steps",
    "decoder",
    "decoder_small",
    "cost",
    "latency",
    "training",
]

_TABLES: dict[Name, Callable[[Path | None], Table]] = {
    "imagenet256": imagenet256_table,
    "ablation": ablation_table,
    "t2i": t2i_table,
    "emoji": emoji_table,
    "distillation": distillation_table,
    "steps": steps_table,
    "decoder": decoder_table,
    "decoder_small": decoder_small_table,
    "cost": cost_table,
    "latency": latency_table,
    "training": training_table,
}


def table(
    name: Name,
    format: Format = "md",  # noqa: A002 (the flag's name)
    reports: Path | None = None,
) -> str:
    """Makes a table.

    Args:
        name: ``imagenet256`` has SnapGen beside its peers, ``ablation`` the way from SDXL's UNet to SnapGen's, ``t2i``
            text-to-image at 1024 px, ``emoji`` the first two in small as measured here, ``distillation`` students of
            one teacher in small, ``steps`` generators of few steps made of one of them, ``decoder`` the way from SD3's
            decoder to SnapGen's, ``decoder_small`` the same in small, ``cost`` what the large ones take, ``latency`` an
            estimate of what a phone takes, ``training`` steps of every stage as timed here.
        format: Markdown, JSON or CSV.
        reports: the folder of measurements to show, ``<row>.json`` each, of ``t2i`` ``<row>-<column>.json``; by
            default the published experiments' own. ``latency`` has none, ``training`` one record.

    Raises:
        ValueError: for measurements that cannot be read, do not compare, or have no place in the table.
    """
    return _TABLES[name](reports).text(format)
