"""What a stage begins with: the averaged weights of a run, or those of a pipeline's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from snapgen_pl.config_files import Value
from snapgen_pl.diffusers_weights import read_tensors
from snapgen_pl.digest import tensors_digest
from snapgen_pl.trained_run import PIPELINE, fill_parts, open_run

# The parts of a pipeline that are trained; weights go by the names that they have in a run's module.
_PARTS = ("unet", "conditioner", "decoder")
_TABLES = ("conditioner.states_NSD", "conditioner.mask_NS")


class StartingWeights(Protocol):
    """Weights by the names of a module's parts: of a :class:`~snapgen_pl.trained_run.TrainedRun`, or a pipeline."""

    @property
    def folder(self) -> Path: ...  # noqa: D102  (where they lie)

    @property
    def origin(self) -> str: ...  # noqa: D102  (the file they are from, in words)

    def weights(self) -> dict[str, Tensor]: ...  # noqa: D102

    def weights_facts(self) -> dict[str, Value]:
        """Which they are, for records."""
        ...


class PipelineWeights(NamedTuple):
    """The trained parts of what ``export diffusers`` wrote.

    Attributes:
        folder: the pipeline's.
    """

    folder: Path

    @property
    def origin(self) -> str:
        """See StartingWeights."""
        return f"the pipeline {self.folder}"

    def weights(self) -> dict[str, Tensor]:
        """Those of the parts that it has.

        Raises:
            ValueError: where a file is missing or damaged.
        """
        folders = [self.folder / part for part in _PARTS if (self.folder / part).is_dir()]
        tensors = {name: tensor for folder in folders for name, tensor in read_tensors(folder).items()}
        # Tables of what encoders said are not learned, and in no module's state.
        return {name: tensor for name, tensor in tensors.items() if name not in _TABLES}

    def weights_facts(self) -> dict[str, Value]:
        """See StartingWeights."""
        return {"pipeline": str(self.folder), "sha256": tensors_digest(self.weights()), "weights": "EMA"}


def open_weights(path: str) -> StartingWeights:
    """The weights that ``init_from`` means: of a run's folder, or of a pipeline's.

    Raises:
        ValueError: for a folder that is neither, or a damaged checkpoint.
        FileNotFoundError: where a run has no checkpoint.
    """
    return PipelineWeights(Path(path)) if (Path(path) / PIPELINE).is_file() else open_run(path)


def begin(source: StartingWeights, parts: Mapping[str, nn.Module], declared: str) -> str:
    """Puts weights in a module's parts, by their names there, and says so in a line for the user.

    Args:
        source: of the weights.
        parts: that begin with them.
        declared: what declares the parts, for the error.

    Raises:
        ValueError: where the weights are not of these parts.
    """
    try:
        fill_parts(nn.ModuleDict(dict(parts)), source.weights())
    except RuntimeError as error:
        raise ValueError(
            f"init_from {source.folder}: its networks are not those of this run; declare {declared} as its "
            f"configuration does. {error}"
        ) from error
    return f"weights begin with the averaged ones of {source.origin}"
