"""Writes down what a run is: code, packages, hardware, data, and every start."""

import importlib.metadata
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.config_files import Value, as_value, differences
from snapgen_pl.data.source import OpenSource
from snapgen_pl.provenance import describe_code, describe_machine
from snapgen_pl.runs import Run
from snapgen_pl.teachers.teacher import HasTeacher
from snapgen_pl.whole_files import write_json

_PACKAGES = (
    "torch",
    "lightning",
    "jsonargparse",
    "torchmetrics",
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
)


class RunManifest(L.Callback):
    """Keeps ``manifest.json`` in the run's folder: one entry a start in ``starts``, so resumes are told apart.

    Each start holds time, command, step, seed, git commit of the code and whether it was changed since, versions,
    hardware, parameters, the data's fingerprint and classes, the identities of the autoencoder and the teacher where
    there are any, and the run whose weights it began with. A resumed run must have the classes that it started with,
    since labels index them; other data of the same classes, another autoencoder or another teacher are warned of. A run
    begun anew in a used folder begins a new manifest.
    """

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds this start.

        Raises:
            ValueError: where a resumed run's classes changed, or its manifest is damaged.
        """
        run = Run(Path(trainer.default_root_dir))
        start = _describe(trainer, pl_module)
        starts = run.starts() if trainer.ckpt_path is not None and run.manifest.exists() else []
        if starts:
            _compare_data(run, starts[-1].get("data"), start["data"])
            for part in ("autoencoder", "teacher"):
                _compare(part, starts[-1].get(part), start[part])
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json({"starts": [*starts, start]}, run.manifest)


def _describe(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "step": trainer.global_step,
        "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        "seed": getattr(pl_module, "seed", None),
        "code": describe_code()._asdict(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "hardware": describe_hardware(trainer),
        "module": type(pl_module).__qualname__,
        "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
        "data": _data(trainer),
        "autoencoder": _autoencoder(pl_module),
        "teacher": _teacher(pl_module),
        "init_from": getattr(pl_module, "began_from", None),
    }


def describe_hardware(trainer: L.Trainer) -> dict[str, Any]:
    """The machine, and how many processes of what precision run on it."""
    return {**describe_machine()._asdict(), "processes": trainer.world_size, "precision": str(trainer.precision)}


def _data(trainer: L.Trainer) -> dict[str, Any] | None:
    """Fingerprint and classes, where the datamodule has opened a source."""
    source = getattr(trainer.datamodule, "source", None)  # type: ignore[attr-defined]
    if not isinstance(source, OpenSource):
        return None
    return {
        "fingerprint": source.fingerprint,
        "classes": list(source.classes),
        "training_images": None if source.streamed else len(source.train),
        "validation_images": len(source.validation),
    }


def _autoencoder(pl_module: L.LightningModule) -> dict[str, Value] | None:
    autoencoder = getattr(pl_module, "autoencoder", None)
    return as_value(autoencoder.identity()) if isinstance(autoencoder, Autoencoder) else None


def _teacher(pl_module: L.LightningModule) -> dict[str, Value] | None:
    return as_value(pl_module.teacher.identity()) if isinstance(pl_module, HasTeacher) else None


def _compare(part: str, before: dict[str, Value] | None, now: dict[str, Value] | None) -> None:
    if before is not None and now is not None and (changed := differences(before, now)):
        listed = "; ".join(f"{change.key} was {change.old!r}, is {change.new!r}" for change in changed)
        rank_zero_warn(f"the {part} changed since the run's last start: {listed}")


def _compare_data(run: Run, before: Any, now: dict[str, Any] | None) -> None:
    if before is None or now is None:
        return
    match before:
        case {"fingerprint": str(fingerprint), "classes": list(classes)}:
            pass
        case _:
            raise ValueError(f"{run.manifest} does not say what data the run was trained on; put it back")
    if fingerprint == now["fingerprint"]:
        return
    if classes != now["classes"]:
        raise ValueError(
            f"the run was trained on {len(classes)} classes, and the data now has others "
            f"({len(now['classes'])}): labels would mean something else. Give the data of the run's manifest.json, or "
            "start a new run"
        )
    rank_zero_warn(f"the data changed since the run's last start: {fingerprint} -> {now['fingerprint']}")
