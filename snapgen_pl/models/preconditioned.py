"""A denoiser that says only what the best linear guess leaves open."""

from collections.abc import Iterator

from torch import Tensor

from snapgen_pl.flow.path import path_deviation, velocity_from_residual
from snapgen_pl.flow.timesteps import check_positive
from snapgen_pl.models.denoiser import VELOCITY, Denoiser, PreparedConditioning
from snapgen_pl.models.wrapped import Wrapped


def preconditioned(denoiser: Denoiser, sigma_data: float | None) -> Denoiser:
    """The denoiser behind :class:`Preconditioned`; as it is where ``sigma_data`` is None."""
    return denoiser if sigma_data is None else Preconditioned(denoiser, sigma_data)


class Preconditioned(Wrapped):
    """Any denoiser behind EDM's preconditioning on the straight path (``flow.path.velocity_from_residual``).

    The network sees latents scaled to unit variance at every time and predicts a residual of unit variance. A small one
    then need not spend its width on carrying its input through. Images of few busy patches among many flat ones learn
    best with less than their latents' own deviation of 1.

    Args:
        denoiser: the network.
        sigma_data: standard deviation of the data that the linear guess is made for.

    Raises:
        ValueError: unless ``sigma_data`` is a finite number above 0.
    """

    def __init__(self, denoiser: Denoiser, sigma_data: float) -> None:
        super().__init__(denoiser)
        check_positive("sigma_data", sigma_data)
        self.sigma_data = sigma_data

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The network's features, and noise - data."""
        scaled_BCHW = x_BCHW / path_deviation(t_B, self.sigma_data)
        for name, output in self.denoiser.outputs(scaled_BCHW, t_B, conditioning):
            yield name, self._velocity(x_BCHW, output, t_B) if name == VELOCITY else output

    def _velocity(self, x_BCHW: Tensor, residual_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return velocity_from_residual(x_BCHW, residual_BCHW, t_B, self.sigma_data)
