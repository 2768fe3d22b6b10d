"""SiT (Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
ECCV 2024, arXiv 2401.08740): DiT's network, trained on a velocity.

Its time runs the other way: x_s = s data + (1 - s) noise and v = dx_s / ds = data - noise, s in [0, 1].
"""

from collections.abc import Iterator

from torch import Tensor, nn

from snapgen_pl.models.denoiser import Conditioning, Denoiser, DenoiserOutput, PreparedConditioning

_SINUSOID_SCALE = 1000  # what layers.TimeEmbedding multiplies its times by


class SiTVelocity(Denoiser):
    """A network with SiT's weights in our convention: v(x, t) = -v_SiT(x, s = 1 - t).

    SiT's sinusoid sees s itself. Ours sees 1000 times what the network is given, which therefore is s / 1000.

    Args:
        network: with SiT's weights; it multiplies times by 1000, as :class:`~snapgen_pl.models.peers.dit.DiT` does.
    """

    def __init__(self, network: Denoiser) -> None:
        super().__init__()
        self.network = network
        self.in_channels, self.context_dim = network.in_channels, network.context_dim
        self.feature_names = network.feature_names

    def units(self) -> Iterator[nn.Module]:
        """The network's."""
        return self.network.units()

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """As the network does."""
        return self.network.prepare(conditioning)

    def forward(
        self,
        x_BCHW: Tensor,
        t_B: Tensor,
        conditioning: Conditioning | PreparedConditioning,
        features: tuple[str, ...] = (),
    ) -> DenoiserOutput:
        """Predicts noise - data."""
        output: DenoiserOutput = self.network(x_BCHW, (1 - t_B) / _SINUSOID_SCALE, conditioning, features)
        return output._replace(velocity_BCHW=-output.velocity_BCHW)
