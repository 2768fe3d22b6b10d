"""Draws from a run's prompts, as ``generate`` does, without its data, its teacher or its discriminator: wiring only."""

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from snapgen_pl.autoencoders.with_decoder import with_decoder
from snapgen_pl.data.requests import Request
from snapgen_pl.drawing import drawing_module
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import NamedSampler, Sampler
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.modules.frozen import Frozen, make_ready
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.trained_run import open_run


class Drawn(L.LightningModule):
    """Predicts images of texts by a run's averaged weights, which are read when a verb begins. It trains nothing.

    Args:
        run: the run's folder.
        decoder: the folder of a decoder's run, which makes the images in place of the autoencoder's own decoder.

    Attributes:
        images_seen: images that the run had trained on.
        origin: of the weights, for records.

    Raises:
        ValueError: for a folder that is no run, a damaged checkpoint, or a run that does not draw from texts.
    """

    def __init__(self, run: str, decoder: str | None = None) -> None:
        super().__init__()
        self._source = with_decoder(open_run(run), decoder)
        self.images_seen = self._source.images_seen
        self.origin = f"EMA of {self._source.origin}"
        drawing = drawing_module(self._source.config)
        if not isinstance(drawing, Pretrain) or drawing.takes != "caption":
            raise ValueError(f"{run} does not draw from texts; a run on classes is measured by `test --run {run}`")
        self._drawing = Frozen(drawing)

    @property
    def drawing(self) -> Pretrain:
        """What draws."""
        return self._drawing.module

    @property
    def sampler(self) -> NamedSampler:
        """The run's."""
        return self.drawing.sampler

    @property
    def guidance(self) -> Guidance:
        """The run's."""
        return self.drawing.guidance

    @property
    def seed(self) -> int:
        """The run's."""
        return self.drawing.seed

    @property
    def image_size(self) -> int:
        """The run's."""
        return self.drawing.image_size

    def setup(self, stage: str) -> None:
        """Reads the weights."""
        # What the run keeps, such as a fitted autoencoder, lies in its folder, not in this one's.
        make_ready(self.trainer, lambda _: self.drawing.ready(self._source.folder, (), ()))
        self._source.load(self.drawing)
        self.drawing.to(self.device)
        rank_zero_info(f"weights: {self.origin}")

    def weights_digest(self) -> str:
        """SHA-256 over the weights as read."""
        return self.drawing.weights_digest()

    def decoder(self) -> Facts:
        """What makes pixels of latents."""
        return self.drawing.decoder()

    def test_step(self, batch: Request, batch_idx: int) -> None:
        """Nothing: callbacks draw what they measure."""

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        """Images of the texts asked for."""
        return self.sample(batch)

    def sample(self, request: Request, sampler: Sampler | None = None, guidance: Guidance | None = None) -> Tensor:
        """See :meth:`~snapgen_pl.modules.pretrain.Pretrain.sample`."""
        return self.drawing.sample(request, sampler, guidance)
