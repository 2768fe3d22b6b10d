"""A denoiser in another's place: what it says differs, all else is the other's."""

from collections.abc import Iterator

from torch import nn

from snapgen_pl.models.denoiser import Conditioning, Denoiser, PreparedConditioning


class Wrapped(Denoiser):
    """Asks a denoiser and says something else; subclasses write ``outputs`` alone.

    Args:
        denoiser: the network.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.in_channels, self.context_dim, self.pooled_dim = (
            denoiser.in_channels,
            denoiser.context_dim,
            denoiser.pooled_dim,
        )
        self.feature_channels, self.feature_strides = denoiser.feature_channels, denoiser.feature_strides

    def units(self) -> Iterator[nn.Module]:
        """The network's."""
        return self.denoiser.units()

    def regions(self) -> Iterator[nn.Module]:
        """The network's."""
        return self.denoiser.regions()

    def check_features(self, features: tuple[str, ...]) -> None:
        """As the network does."""
        self.denoiser.check_features(features)

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """As the network does."""
        return self.denoiser.prepare(conditioning)
