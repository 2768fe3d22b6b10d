"""What a stage begins with: the averaged weights of a run, or of a pipeline that was made of one."""

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder, without_rounding
from snapgen_pl.config_files import as_value, differences
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


def check_latents(source: Trained, autoencoder: Autoencoder) -> None:
    """Refuses weights that were trained on other final latents than a run's.

    The autoencoder's class, weights, shift, scale and whitening are compared: where its files lie, and what it computes
    in, makes no other latents. Warns where nothing tells which weights the source's autoencoder had.

    Args:
        source: of the weights to begin with.
        autoencoder: the run's own; ready.

    Raises:
        ValueError: naming what differs, or where nothing tells the source's latents.
    """
    theirs = as_value(source.latents())
    own = as_value(without_rounding(autoencoder.identity()))
    if theirs.get("weights") != own["weights"] and source.autoencoder_rounded():
        rank_zero_warn(
            f"{source.origin} does not tell which weights its autoencoder had before they were rounded: whether they "
            "are those of model.autoencoder is not known; all else that latents depend on is compared"
        )
        own["weights"] = theirs.get("weights")
    if changed := differences(theirs, own):
        listed = "; ".join(f"{change.key} is {change.old!r} there, {change.new!r} here" for change in changed)
        raise ValueError(
            f"init_from {source.folder}: its weights were trained on other latents than those of model.autoencoder: "
            f"{listed}. Set model.autoencoder to that run's, or go on without --model.init_from"
        )
