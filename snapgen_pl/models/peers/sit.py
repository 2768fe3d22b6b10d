"""SiT (Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
ECCV 2024, arXiv 2401.08740): DiT's network, trained on a velocity.

Its time runs the other way: x_s = s data + (1 - s) noise and v = dx_s / ds = data - noise, s in [0, 1].
"""

from collections.abc import Iterator

from torch import Tensor

from snapgen_pl.models.denoiser import VELOCITY, PreparedConditioning
from snapgen_pl.models.wrapped import Wrapped

_SINUSOID_SCALE = 1000  # what layers.TimeEmbedding multiplies its times by


class SiTVelocity(Wrapped):
    """A network with SiT's weights in our convention: v(x, t) = -v_SiT(x, s = 1 - t).

    SiT's sinusoid sees s itself. Ours sees 1000 times what the network is given, which therefore is s / 1000.

    Args:
        denoiser: with SiT's weights; it multiplies times by 1000, as :class:`~snapgen_pl.models.peers.dit.DiT` does.
    """

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The network's features, and noise - data."""
        for name, output in self.denoiser.outputs(x_BCHW, (1 - t_B) / _SINUSOID_SCALE, conditioning):
            yield name, -output if name == VELOCITY else output
