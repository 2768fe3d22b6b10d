"""Images a second from texts to pixels: ``python -m benchmarks.throughput --json FILE``, on a GPU.

CLIP-L, CLIP-G and Gemma-2-2b, the denoiser of experiments/t2i by 28 Euler steps at 1024 px, and the decoder of
experiments/decoder, all with random weights of the true shapes; together, and each apart, at the largest batch that
fits. ``--size small`` runs anywhere, to see that it does.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.networks import materialise
from benchmarks.timing import environment
from snapgen_pl.conditioning.text_conditioner import joined
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.flow.samplers import Euler, Sampler
from snapgen_pl.images import to_uint8
from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.decoder import Stage as DecoderStage
from snapgen_pl.models.denoiser import Conditioning, Denoiser
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.tables.declared import declared_decoder, declared_denoiser
from snapgen_pl.tables.latency import CLIP_G, CLIP_L, CLIP_TOKENS, clip_text_config
from snapgen_pl.whole_files import write_json

if TYPE_CHECKING:  # the import takes seconds
    from transformers import CLIPTextConfig, Gemma2Config

GEMMA_TOKENS = 128
SHIFT = 3.0  # of experiments/t2i
PROTOCOL = (
    "random weights; text: three encoders on whole rows of token ids, in bf16, tokenizing left out; denoiser: fp32 "
    "weights under bf16 autocast, as `test` draws; decoder: fp32; all: from ids to bytes in one call; wall time, "
    "median of rounds after one that warms up; the batch is the largest at which all of it fits, unless it was given"
)


@dataclass(frozen=True)
class Size:
    """What is built.

    Attributes:
        image_size: in pixels.
        denoiser: makes it, on the meta device.
        decoder: likewise.
        clips: configurations of CLIP's text encoders.
        gemma: of Gemma.
    """

    image_size: int
    denoiser: Callable[[], Denoiser]
    decoder: Callable[[], LatentDecoder]
    clips: Callable[[], "Sequence[CLIPTextConfig]"]
    gemma: Callable[[], "Gemma2Config"]


def _gemma(**sizes: Any) -> "Gemma2Config":
    """Gemma-2-2b's own sizes, unless told otherwise."""
    from transformers import Gemma2Config

    return Gemma2Config(**sizes)


_SMALL_STAGES = [Stage(32, [Block()], [Block()] * 2), Stage(64, [Block(layers=1)], [Block(layers=1)] * 2)]
_SMALL_GEMMA = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
_EXPERIMENTS = experiments_dir()
SIZES = {
    "full": Size(
        1024,
        lambda: declared_denoiser(_EXPERIMENTS / "t2i" / "kd_output.yaml"),
        lambda: declared_decoder(_EXPERIMENTS / "decoder" / "tiny.yaml"),
        lambda: [clip_text_config(*CLIP_L), clip_text_config(*CLIP_G)],
        _gemma,
    ),
    "small": Size(
        64,
        lambda: UNet(_SMALL_STAGES, head_dim=32, middle_layers=1, in_channels=16, context_dim=192),
        lambda: Decoder(stages=[DecoderStage(32, 1)] * 4),
        lambda: [clip_text_config(2, 64, "quick_gelu"), clip_text_config(2, 128, "gelu")],
        lambda: _gemma(**_SMALL_GEMMA),
    ),
}


class Pipeline:
    """From token ids to images, in parts.

    Args:
        size: of the parts.
        device: where they lie.
        guidance: its scale; 1 is none, and costs none.
    """

    def __init__(self, size: Size, device: torch.device, guidance: float) -> None:
        from transformers import CLIPTextModel, Gemma2Model

        self.device, self.guidance = device, Guidance(guidance)
        self.denoiser = materialise(size.denoiser, device).eval().requires_grad_(False)
        self.decoder = materialise(size.decoder, device).eval().requires_grad_(False)
        with torch.device(device):
            networks = [*(CLIPTextModel(config) for config in size.clips()), Gemma2Model(size.gemma())]
        self._texts: list[Any] = [each.to(torch.bfloat16).eval().requires_grad_(False) for each in networks]  # type: ignore[arg-type]
        side = size.image_size // self.decoder.upsampling
        self.latent_shape = self.denoiser.in_channels, side, side

    def compile(self) -> None:
        """Compiles denoiser and decoder."""
        compile_regions(self.denoiser)
        self.decoder.compile(dynamic=False)

    def parameters(self) -> dict[str, int]:
        """Of each part."""
        parts = {"text": self._texts, "denoiser": [self.denoiser], "decoder": [self.decoder]}
        return {
            name: sum(weight.numel() for network in networks for weight in network.parameters())
            for name, networks in parts.items()
        }

    @torch.no_grad()
    def text(self, batch: int) -> Conditioning:
        """The context of so many texts: a null token, CLIP's two beside each other, Gemma's."""
        *clips, gemma = self._texts
        states = [
            clip(input_ids=self._ids(clip, batch, CLIP_TOKENS), output_hidden_states=True).hidden_states[-2].float()
            for clip in clips
        ]
        ids_BS = self._ids(gemma, batch, GEMMA_TOKENS)
        blocks = [states, [gemma(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)).last_hidden_state.float()]]
        context_BSD = joined(blocks, self.denoiser.context_dim)
        token_BSD = torch.cat((torch.zeros_like(context_BSD[:, :1]), context_BSD), dim=1)
        # There is a mask, as there is where Gemma's padding is masked.
        return Conditioning(token_BSD, torch.ones(token_BSD.shape[:2], dtype=torch.bool, device=self.device))

    @torch.no_grad()
    def denoise(self, conditioning: Conditioning, sampler: Sampler) -> Tensor:
        """Latents of a context."""
        position_B = torch.arange(len(conditioning.tokens_BSD), device=self.device)
        noise = initial_noise(0, position_B, self.latent_shape)
        with torch.autocast(self.device.type, torch.bfloat16):
            velocity = guided_velocity(self.denoiser, conditioning, conditioning, self.guidance)
            return sampler(velocity, noise, step_noise(0, position_B, self.latent_shape))

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Bytes of latents."""
        return to_uint8(self.decoder(latent_BCHW.float()))

    def all(self, batch: int, sampler: Sampler) -> Tensor:
        """Images of so many texts."""
        return self.decode(self.denoise(self.text(batch), sampler))

    def fits(self, batch: int) -> bool:
        """Whether a batch goes through a GPU's memory; one step holds as much as many."""
        try:
            self.all(batch, Euler(1))
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    def _ids(self, network: Any, batch: int, tokens: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        size = batch, tokens
        return torch.randint(0, network.config.vocab_size, size, device=self.device, generator=generator)


def largest(fits: Callable[[int], bool]) -> int:
    """The largest batch that fits, by doubling and halving; as if whatever is smaller than one that fits did too.

    Raises:
        ValueError: where none fits.
    """
    if not fits(1):
        raise ValueError("not even one image fits; take a device of more memory, or --size small")
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main(
    json: Path | None = None,
    size: Literal["full", "small"] = "full",
    batch: int | None = None,
    steps: int = 28,
    guidance: float = 1.0,
    compile: bool = False,  # noqa: A002 (torch's word for it)
    rounds: int = 3,
) -> None:
    """Measures throughput, and how it divides among the parts.

    Args:
        json: file for the record; none is written if not given.
        size: full, or small to see that it runs.
        batch: images at once; by default the largest that fits the GPU.
        steps: of the sampler.
        guidance: its scale; experiments/t2i draws without, by 1.
        compile: compiles denoiser and decoder.
        rounds: timed calls of each part.

    Raises:
        ValueError: for numbers below 1, and where the largest batch is asked for without a GPU.
    """
    if min(rounds, steps, 1 if batch is None else batch) < 1:
        raise ValueError(f"batch is {batch}, steps {steps}, rounds {rounds}; all must be at least 1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if batch is None and device.type == "cpu":
        raise ValueError("the largest batch is that of a GPU, and there is none here; give --batch")
    where = environment("benchmarks.throughput", accelerator=device.type == "cuda")
    pipeline, sampler = Pipeline(SIZES[size], device, guidance), Euler(steps, shift=SHIFT)
    batch = batch or largest(pipeline.fits)
    if compile:
        pipeline.compile()
    seconds, peak = measure(pipeline, batch, sampler, rounds)
    images_per_s = {part: batch / each for part, each in seconds.items()}
    for part, each in images_per_s.items():
        print(f"{part:<9} {each:9.3f} images/s, {seconds[part]:9.3f} s for {batch}")
    if json is not None:
        record = {
            "protocol": PROTOCOL,
            "environment": asdict(where),
            "size": size,
            "image_size": SIZES[size].image_size,
            "sampler": repr(sampler),
            "guidance": guidance,
            "compiled": compile,
            "batch": batch,
            "rounds": rounds,
            "parameters": pipeline.parameters(),
            "seconds": seconds,
            "images_per_s": images_per_s,
            "peak_memory_gib": peak,
        }
        write_json(record, json)


def measure(pipeline: Pipeline, batch: int, sampler: Sampler, rounds: int) -> tuple[dict[str, float], float | None]:
    """Seconds of each part and of all, and the most memory held on a GPU, in GiB.

    Args:
        pipeline: the parts.
        batch: images at once.
        sampler: draws them.
        rounds: timed calls of each.
    """
    cuda = pipeline.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def median(call: Callable[[], object]) -> float:
        return statistics.median([_seconds(call, cuda) for _ in range(1 + rounds)][1:])

    # Nothing is held from part to part that all together do not hold: the batch is the largest that just fits.
    seconds = {"all": median(lambda: pipeline.all(batch, sampler)), "text": median(lambda: pipeline.text(batch))}
    held = [pipeline.text(batch)]
    seconds["denoiser"] = median(lambda: pipeline.denoise(held[0], sampler))
    latent_BCHW = pipeline.denoise(held.pop(), sampler)
    seconds["decoder"] = median(lambda: pipeline.decode(latent_BCHW))
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else None


def _seconds(call: Callable[[], object], cuda: bool) -> float:
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
