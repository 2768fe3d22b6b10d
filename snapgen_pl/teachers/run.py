"""Any run of this project as a teacher."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.digest import tensors_digest, values_digest
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.preconditioned import preconditioned
from snapgen_pl.teachers.teacher import Teacher
from snapgen_pl.trained_run import open_run

# What of a module's arguments makes its network.
_NETWORK = ("denoiser", "conditioner", "sigma_data")


class RunTeacher(Teacher):
    """The averaged weights of a run's newest checkpoint: its denoiser and its conditioner, without its data.

    Args:
        run: the run's folder, such as runs/imagenet256.
        guidance: guides the velocity, whatever guides the run's own samples.
        dtype: what products are computed in; bfloat16 by autocast, as runs train in bf16-mixed.

    Raises:
        ValueError: for a folder that is no run of a denoiser, or a damaged checkpoint.
        FileNotFoundError: where the run has no checkpoint.
    """

    def __init__(
        self,
        run: str,
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self._run, self.dtype = open_run(run), dtype
        parts = self._run.build("a teacher", denoiser=Denoiser, conditioner=Conditioner)
        sigma_data = self._run.model.get("sigma_data")
        assert sigma_data is None or isinstance(sigma_data, float | int), sigma_data
        super().__init__(preconditioned(parts.denoiser, sigma_data), parts.conditioner, guidance)

    def latents(self) -> Mapping[str, str | int | float]:
        """The identity of the run's autoencoder."""
        return self._run.latents()

    def _read(self, folder: Path, classes: tuple[str, ...]) -> list[str]:
        own = self._run.classes() if self.takes == "label" else ()
        if self.takes == "label":
            self._check_classes(own, classes)
        # What its conditioner keeps lies in its own run's folder.
        line = self._conditioner.ready(self._run.folder, own)
        self._run.load(nn.ModuleDict({"denoiser": self._denoiser, "conditioner": self._conditioner}))
        return [f"teacher: {self._run.checkpoint}, averaged weights", *filter(None, [line])]

    def identity(self) -> Facts:
        """The weights' SHA-256 is of the checkpoint, which is read for it once."""
        return {
            "class": type(self).__name__,
            "configuration": values_digest({key: self._run.model.get(key) for key in _NETWORK}),
            "weights": self._weights_digest,
            "dtype": self.dtype,
            "guidance": repr(self.guidance),
            "encoders": dict(self.encoders()),
        }

    @cached_property
    def _weights_digest(self) -> str:
        weights = self._run.weights().items()
        return tensors_digest({name: weight for name, weight in weights if name.split(".")[0] in _NETWORK})

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def _check_classes(self, own: tuple[str, ...], classes: tuple[str, ...]) -> None:
        if own == classes:
            return
        if len(own) != len(classes):
            said = f"{len(own)} classes, the data {len(classes)}"
        else:
            label = next(label for label, name in enumerate(own) if name != classes[label])
            said = f"{own[label]!r} for class {label}, the data {classes[label]!r}"
        raise ValueError(
            f"the teacher's run {self._run.folder} has {said}: labels would mean something else to it. "
            "Give the data that it was trained on, or another teacher"
        )
