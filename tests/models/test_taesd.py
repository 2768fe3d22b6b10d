import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from snapgen_pl.models.taesd import TAESDDecoder


def test_it_is_the_decoder_of_diffusers_tiny_autoencoder() -> None:
    torch.manual_seed(0)
    ours, theirs = TAESDDecoder(in_channels=4), AutoencoderTiny(latent_channels=4)
    theirs.decoder.load_state_dict(ours.network.state_dict())
    raw = 3 * torch.randn(2, 4, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours(raw), theirs.decode(raw).sample)
    assert ours(raw).shape == (2, 3, ours.upsampling * 5, ours.upsampling * 7)
    ours(raw).mean().backward()
    assert ours.last.weight.shape[0] == 3
    assert ours.last.weight.grad is not None
