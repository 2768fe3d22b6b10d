"""Drawers that decode with one of our autoencoders."""

from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.released.drawer import Decoder, Drawer


class AutoencoderDrawer(Drawer):
    """Draws final latents of a frozen autoencoder, which decodes them.

    Args:
        image_size: side of the images, in pixels.
        num_classes: labels are 0 to num_classes - 1.
        guidance: how the sampler is guided.
        autoencoder: of the latents.
        patch: height and width of the network's patches, in latent positions.

    Raises:
        ValueError: unless patches tile the images.
    """

    def __init__(
        self, image_size: int, num_classes: int, guidance: Guidance, autoencoder: Autoencoder, patch: int = 1
    ) -> None:
        super().__init__(image_size, num_classes, guidance)
        if image_size % (side := autoencoder.downsampling * patch):
            raise ValueError(
                f"image_size {image_size} is not a multiple of {side}, the pixels along a patch of {patch}x{patch} "
                "latent positions"
            )
        self.autoencoder = autoencoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        side = self.image_size // self.autoencoder.downsampling
        return self.autoencoder.channels, side, side

    def _decoder(self) -> Decoder:
        decoding = self.autoencoder.decoding()
        return Decoder(str(decoding["class"]), str(decoding["weights"]))

    def _decoded(self, latent_BCHW: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.to_raw(latent_BCHW))
