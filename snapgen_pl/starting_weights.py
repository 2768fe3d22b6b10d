"""What a stage begins with: the averaged weights of a run, or of a pipeline that was made of one."""

from collections.abc import Mapping

from torch import nn

from snapgen_pl.trained_run import Trained, fill_parts

# Of pipelines: tables of what encoders said are not learned, and in no module's state.
_TABLES = ("conditioner.states_NSD", "conditioner.mask_NS")


def begin(source: Trained, parts: Mapping[str, nn.Module], declared: str) -> str:
    """Puts weights in a module's parts, by their names there, and says so in a line for the user.

    Args:
        source: of the weights.
        parts: that begin with them.
        declared: what declares the parts, for the error.

    Raises:
        ValueError: where the weights are not of these parts.
    """
    weights = {name: tensor for name, tensor in source.weights().items() if name not in _TABLES}
    try:
        fill_parts(nn.ModuleDict(dict(parts)), weights)
    except RuntimeError as error:
        raise ValueError(
            f"init_from {source.folder}: its networks are not those of this run; declare {declared} as its "
            f"configuration does. {error}"
        ) from error
    return f"weights begin with the averaged ones of {source.origin}"
