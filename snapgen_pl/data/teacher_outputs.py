"""What a teacher said of images, each at its pinned noises and times, on disk.

A shard holds ``velocity`` (N, C, H, W), and ``feature.<name>`` (N, C', H', W') for each feature. Rows are positions:
those of training image i are ``draws`` consecutive ones, from i * draws on; one of validation is its image's index.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snapgen_pl.config_files import Value, differences
from snapgen_pl.data.shards import Manifest, ShardFolder, Split, SplitShards
from snapgen_pl.data.source import Taught

FORMAT = "snapgen_pl teacher outputs 1"
_VELOCITY, _FEATURE = "velocity", "feature."


def output_tensors(parts: Sequence[Taught]) -> dict[str, Tensor]:
    """What a shard holds, of the batches that it is made of, in order."""
    features = {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features}
    velocity = torch.cat([part.velocity_BCHW for part in parts])
    return {_VELOCITY: velocity} | {_FEATURE + name: feature for name, feature in features.items()}


def rounded(taught: Taught, dtype: str) -> Taught:
    """As it is stored.

    Args:
        taught: of a batch.
        dtype: float16 or float32.

    Raises:
        ValueError: where the type cannot hold a value.
    """
    kind = getattr(torch, dtype)
    stored = Taught(taught.velocity_BCHW.to(kind), {name: value.to(kind) for name, value in taught.features.items()})
    if not all(part.isfinite().all() for part in (stored.velocity_BCHW, *stored.features.values())):
        raise ValueError(f"the teacher says what {dtype} cannot hold, or what is not finite; try --model.dtype float32")
    return stored


class StoredOutputs(SplitShards):
    """A teacher's outputs of one split, by position.

    Args:
        folder: where the shards lie.
        manifest: what they are.
        split: which.
        features: to read besides velocities.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split, features: Sequence[str]) -> None:
        super().__init__(folder, manifest, split)
        self.features = tuple(features)

    def load(self, positions: Sequence[int]) -> Taught:
        """Those at these positions, as stored."""
        places = [self.at(position) for position in positions]

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([arrays[name][row] for arrays, row in places]))

        return Taught(stacked(_VELOCITY), {name: stacked(_FEATURE + name) for name in self.features})


class TeacherOutputFolder(ShardFolder):
    """Shards that ``predict`` with :class:`~snapgen_pl.modules.encode_teacher.EncodeTeacher` wrote.

    Args:
        folder: where they lie.

    Raises:
        ValueError: where there are none, or they are of something else.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, FORMAT, "teacher outputs")
        self._chosen: tuple[str, ...] = ()

    def split(self, split: Split) -> StoredOutputs:
        """The outputs of a split, with the features that were chosen."""
        return StoredOutputs(self.folder, self.manifest, split, self._chosen)

    def choose(self, features: Sequence[str]) -> None:
        """Has these features read besides velocities; before, there are none.

        Raises:
            ValueError: naming those that were not stored.
        """
        stored = self.manifest.plan.facts.get("features")
        if not isinstance(stored, list):
            raise ValueError(f"the manifest in {self.folder} does not say which features it has; make them again")
        if missing := [name for name in features if name not in stored]:
            raise ValueError(
                f"the teacher outputs in {self.folder} have no features {', '.join(missing)}; make them again with the "
                "features of this run"
            )
        self._chosen = tuple(features)

    def check_facts(self, facts: Mapping[str, Value]) -> None:
        """Checks that they are what a run's own teacher would say at the run's own noises and times.

        Args:
            facts: what the outputs depend on besides the images, of the run.

        Raises:
            ValueError: naming what differs.
        """
        stored = {key: value for key, value in self.manifest.plan.facts.items() if key not in ("features", "dtype")}
        if changed := differences(stored, dict(facts)):
            listed = "; ".join(f"{change.key} is {change.old!r} there, {change.new!r} here" for change in changed)
            raise ValueError(
                f"the teacher outputs in {self.folder} are not what this run's teacher would say: {listed}. Set these "
                "alike, make the outputs again, or leave data.teacher_outputs out"
            )
