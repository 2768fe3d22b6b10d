"""Draws from weights that others released: wiring only."""

from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from snapgen_pl.data.requests import Request
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Sampler
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.modules.draws_only import DrawsOnly
from snapgen_pl.modules.frozen import make_ready
from snapgen_pl.released.drawer import Drawer


class Released(DrawsOnly):
    """Predicts images of the labels asked for.

    Args:
        drawer: what draws; its weights are read when a verb begins.
        seed: seeds the noise, besides a sample's position; in [0, 2^48).

    Attributes:
        images_seen: 0, for none was trained on here.
        origin: of the weights, for records.
    """

    origin = "as released"

    def __init__(self, drawer: Drawer, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= seed < 1 << 48:
            raise ValueError(f"seed is {seed}; it must lie in [0, 2^48)")
        self.drawer, self.seed = drawer, seed
        self.images_seen = 0

    @property
    def drawing(self) -> Drawer:
        """See DrawsOnly."""
        return self.drawer

    def read_weights(self) -> None:
        """Those of the drawer."""
        make_ready(self.trainer, self.drawer.ready)

    def weights_digest(self) -> str:
        """SHA-256 over the weights as read."""
        return self.drawer.describe().weights

    def decoder(self) -> Facts:
        """What makes pixels of latents."""
        facts = self.drawer.describe()
        return {"decoder": facts.decoder, "weights": facts.decoder_weights}

    def sample(self, request: Request, sampler: Sampler | None = None, guidance: Guidance | None = None) -> Tensor:
        """Draws images.

        Args:
            request: labels, and the positions that noise is drawn from: the same request gives the same images.
            sampler: the drawer's, or None.
            guidance: in place of the drawer's.

        Returns:
            uint8 (B, 3, image_size, image_size).

        Raises:
            ValueError: for a sampler other than the drawer's.
        """
        if sampler not in (None, self.sampler):
            raise ValueError("released weights are drawn from by their own sampler; set model.drawer.sampler instead")
        return self.drawer.draw(self.seed, move_data_to_device(request, self.device), guidance)
