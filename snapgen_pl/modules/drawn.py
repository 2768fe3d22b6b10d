"""Draws from the prompts of a run, or of a pipeline, as ``generate`` does, and from no data: wiring only."""

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from snapgen_pl.autoencoders.with_decoder import with_decoder
from snapgen_pl.data.requests import Request
from snapgen_pl.drawing import built_module
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Sampler
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.modules.draws_only import DrawsOnly
from snapgen_pl.modules.frozen import Frozen, make_ready
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.pipeline.folder import open_trained


class Drawn(DrawsOnly):
    """Predicts images of texts by a run's averaged weights, without its teacher or its discriminator.

    Args:
        run: the folder of a run, or of the pipeline that was made of one; its weights are read when a verb begins.
        decoder: the folder of a decoder's run, which makes the images in place of the autoencoder's own decoder.

    Attributes:
        images_seen: images that the run had trained on; 0 for a pipeline, which does not say.
        origin: of the weights, for records.

    Raises:
        ValueError: for a folder that is neither, a damaged checkpoint, or a run that does not draw from texts.
    """

    def __init__(self, run: str, decoder: str | None = None) -> None:
        super().__init__()
        self._source = with_decoder(open_trained(run), decoder)
        self.images_seen = self._source.images_seen
        self.origin = f"EMA of {self._source.origin}"
        drawing = built_module(self._source.config)
        if not isinstance(drawing, Pretrain) or drawing.takes != "caption":
            raise ValueError(f"{run} does not draw from texts; a run on classes is measured by `test --run` of it")
        self._drawing = Frozen(drawing)

    @property
    def drawing(self) -> Pretrain:
        """See DrawsOnly."""
        return self._drawing.module

    @property
    def seed(self) -> int:
        """The run's."""
        return self.drawing.seed

    def read_weights(self) -> None:
        """Those of the run."""
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

    def sample(self, request: Request, sampler: Sampler | None = None, guidance: Guidance | None = None) -> Tensor:
        """See :meth:`~snapgen_pl.modules.pretrain.Pretrain.sample`."""
        return self.drawing.sample(request, sampler, guidance)
