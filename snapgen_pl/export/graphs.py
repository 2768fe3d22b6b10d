"""What is exported of a run: its networks as modules from flat tensors to flat tensors, at fixed shapes and batch 1.

==============  ==============================================================================  =====================
graph           inputs                                                                          outputs
==============  ==============================================================================  =====================
denoiser        sample, timestep, context, and mask and pooled where there are such             velocity
decoder         latent, final                                                                   image
context         label; or kept, and <name>_tokens, <name>_mask, <name>_pooled of each encoder   context, mask, pooled
text_<name>     input_ids, and attention_mask where padding is masked                           tokens, pooled
==============  ==============================================================================  =====================

Masks are numbers, 1 where a token may be attended to and 0 where not. Times run from 0, data, to 1, noise.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from snapgen_pl import rng
from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.conditioning.class_conditioner import ClassConditioner
from snapgen_pl.conditioning.condition import Texts, TextStates
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.conditioning.partial_texts import PartialTexts
from snapgen_pl.conditioning.text_conditioner import Encoder
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.conditioning.token_ids import token_ids
from snapgen_pl.models.denoiser import Conditioning, Denoiser

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel

DENOISER, DECODER, CONTEXT = "denoiser", "decoder", "context"
EXAMPLE_TIME = 0.9137  # 913.7 is no number of float16, which would be seen
EXAMPLE_SEED = 0
EXAMPLE_TEXT = "a photo of a cat"


class Exportable(Protocol):
    """A module whose networks can be exported, such as :class:`~snapgen_pl.modules.pretrain.Pretrain`.

    Attributes:
        denoiser: with the weights to export.
        conditioner: likewise, and ready.
        autoencoder: ready.
        latent_shape: (C, H, W) of one latent.
    """

    denoiser: Denoiser
    conditioner: Conditioner

    @property
    def autoencoder(self) -> Autoencoder: ...  # noqa: D102  (documented above)

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...  # noqa: D102


class Graph(NamedTuple):
    """A network to export.

    Attributes:
        name: of its file.
        module: called with the inputs in their order; gives a tensor, or a tuple where there are several outputs.
        inputs: an example of each, by name.
        outputs: their names.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def text_graph(encoder: str) -> str:
    """The name of a text encoder's graph."""
    return f"text_{encoder}"


def text_encoders(conditioner: Conditioner) -> dict[str, TextEncoder]:
    """The encoders of a conditioner that have weights to export, by name; none where it takes no texts."""
    encoders = conditioner.text_encoders if isinstance(conditioner, PartialTexts) else {}
    return {name: encoder for name, encoder in encoders.items() if isinstance(encoder, TextEncoder)}


def graph_names(conditioner: Conditioner) -> list[str]:
    """The names of a run's graphs, by its conditioner."""
    return [DENOISER, DECODER, CONTEXT, *map(text_graph, text_encoders(conditioner))]


def graphs(module: Exportable) -> Iterator[Graph]:
    """All graphs of a run, one by one: a text encoder's weights are read for its graph, and need not stay.

    Args:
        module: in fp32, on the CPU.

    Raises:
        ValueError: for a conditioner that cannot be exported, and where a text encoder's weights are missing.
    """
    context = _context_graph(module.conditioner)
    with torch.no_grad():
        told = _outputs(context)
    latent = rng.normal(EXAMPLE_SEED, rng.Stream.NOISE, torch.tensor([0]), module.latent_shape)
    inputs = {"sample": latent, "timestep": torch.tensor([EXAMPLE_TIME]), **told}
    yield Graph(DENOISER, DenoiserGraph(module.denoiser, "mask" in told), inputs, ("velocity",))
    yield Graph(DECODER, DecoderGraph(module.autoencoder), {"latent": latent}, ("image",))
    yield context
    for name, encoder in text_encoders(module.conditioner).items():
        yield _text_graph(name, encoder, "pooled" in told)


def state_inputs(name: str, states: TextStates) -> dict[str, Tensor]:
    """An encoder's states as inputs of the graph ``context``."""
    parts = {"tokens": states.tokens_BSD, "mask": states.mask_BS, "pooled": states.pooled_BP}
    return {f"{name}_{part}": tensor.float() for part, tensor in parts.items() if tensor is not None}


class DenoiserGraph(nn.Module):
    """(sample, timestep, context, [mask], [pooled]) -> velocity."""

    def __init__(self, denoiser: Denoiser, masked: bool) -> None:
        super().__init__()
        self.denoiser, self.masked = denoiser, masked

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor, *told: Tensor) -> Tensor:
        """Predicts noise - data."""
        mask, *rest = told if self.masked else (None, *told)
        conditioning = Conditioning(context, None if mask is None else mask > 0.5, *rest)
        velocity: Tensor = self.denoiser(sample, timestep, conditioning).velocity_BCHW
        return velocity


class DecoderGraph(nn.Module):
    """Final latent -> image, about [-1, 1]; shift and scale are inside."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent: Tensor) -> Tensor:
        """Decodes."""
        return self.autoencoder.decode(self.autoencoder.to_raw(latent))


class LabelGraph(nn.Module):
    """Label -> context, [mask], [pooled]."""

    def __init__(self, conditioner: Conditioner) -> None:
        super().__init__()
        self.conditioner = conditioner

    def forward(self, label: Tensor) -> tuple[Tensor, ...]:
        """What a denoiser is told of a class."""
        return _flat(self.conditioner(label.long()))


class TextsGraph(nn.Module):
    """(kept, the encoders' states) -> context, [mask], [pooled]."""

    def __init__(self, conditioner: PartialTexts, pooled: bool) -> None:
        super().__init__()
        self.conditioner, self.pooled = conditioner, pooled

    def forward(self, kept: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """What a denoiser is told of a text."""
        given = iter(states)
        brought = {name: self._states(encoder, given) for name, encoder in self.conditioner.text_encoders.items()}
        return _flat(self.conditioner(Texts(("",), brought, kept > 0.5)))

    def _states(self, encoder: Encoder, given: Iterator[Tensor]) -> TextStates:
        tokens = next(given)
        mask = next(given) > 0.5 if encoder.masked else None
        if encoder.pooled_dim is None:
            return TextStates(tokens, mask)
        # Conditioners ask for a pooled vector wherever there is one, whether or not they make anything of it.
        return TextStates(tokens, mask, next(given) if self.pooled else tokens.new_zeros(1, encoder.pooled_dim))


class TextGraph(nn.Module):
    """(input_ids, [attention_mask]) -> tokens, [pooled]."""

    def __init__(self, encoder: TextEncoder, network: "PreTrainedModel", pooled: bool) -> None:
        super().__init__()
        self.encoder, self.network, self.pooled = encoder, network, pooled

    def forward(self, input_ids: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
        """The states of a text."""
        tokens, pooled = self.encoder.run(self.network, input_ids, mask[0] > 0.5 if mask else None)
        return (tokens, pooled) if self.pooled and pooled is not None else (tokens,)


def _context_graph(conditioner: Conditioner) -> Graph:
    if isinstance(conditioner, ClassConditioner):
        label = {"label": torch.zeros(1, dtype=torch.int32)}
        return Graph(CONTEXT, LabelGraph(conditioner), label, _names(conditioner(label["label"].long())))
    if not isinstance(conditioner, PartialTexts):
        kind = type(conditioner).__name__
        raise ValueError(f"{kind} is not exported; ClassTokens, ClassTexts and JoinedTexts are")
    states = {name: _example_states(encoder) for name, encoder in conditioner.text_encoders.items()}
    kept = torch.ones(1, len(states))
    outputs = _names(conditioner(Texts(("",), states, kept.bool())))
    pooled = "pooled" in outputs
    inputs = {"kept": kept}
    for name, example in states.items():
        inputs |= state_inputs(name, example if pooled else example._replace(pooled_BP=None))
    return Graph(CONTEXT, TextsGraph(conditioner, pooled), inputs, outputs)


def _text_graph(name: str, encoder: TextEncoder, pooled: bool) -> Graph:
    tokenizer, network = encoder.load("float32")
    ids_BS, mask_BS = token_ids(tokenizer, [EXAMPLE_TEXT], encoder.tokens, truncate=True, remedy="")
    masks = {"attention_mask": mask_BS.float()} if encoder.masked else {}
    outputs = ("tokens", "pooled") if pooled and encoder.pooled_dim is not None else ("tokens",)
    graph = TextGraph(encoder, network, pooled)
    return Graph(text_graph(name), graph, {"input_ids": ids_BS.int(), **masks}, outputs)


def _example_states(encoder: Encoder) -> TextStates:
    """Noise, and a text as long as two thirds of the room for it."""

    def noise(*shape: int) -> Tensor:
        return rng.normal(EXAMPLE_SEED, rng.Stream.NOISE, torch.tensor([0]), shape)

    mask_BS = torch.arange(encoder.tokens)[None] < max(1, encoder.tokens * 2 // 3) if encoder.masked else None
    pooled_BP = None if encoder.pooled_dim is None else noise(encoder.pooled_dim)
    return TextStates(noise(encoder.tokens, encoder.context_dim), mask_BS, pooled_BP)


def _outputs(graph: Graph) -> dict[str, Tensor]:
    """What a graph of several outputs gives for its examples, by name."""
    return dict(zip(graph.outputs, graph.module(*graph.inputs.values()), strict=True))


def _flat(conditioning: Conditioning) -> tuple[Tensor, ...]:
    """The tensors there are, masks as numbers."""
    return tuple(tensor.float() for tensor in conditioning if tensor is not None)


def _names(conditioning: Conditioning) -> tuple[str, ...]:
    """The names of the tensors there are."""
    named = zip(("context", "mask", "pooled"), conditioning, strict=True)
    return tuple(name for name, tensor in named if tensor is not None)
