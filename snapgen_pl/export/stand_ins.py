"""Programs in the places of a module's parts, so that it draws through them: all else is the module's own code."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, Self

import torch
from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.conditioning.class_conditioner import ClassConditioner
from snapgen_pl.conditioning.condition import Condition, TextStates, labels, texts
from snapgen_pl.conditioning.partial_texts import PartialTexts
from snapgen_pl.conditioning.token_ids import SavedTokenizer
from snapgen_pl.export.graphs import state_inputs
from snapgen_pl.export.programs import Program, run_rows
from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning


class ProgramDenoiser(Denoiser):
    """A denoiser that is a program; it has no features.

    Args:
        program: the graph ``denoiser``.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.in_channels = program.inputs["sample"].shape[1]
        self.context_dim = program.inputs["context"].shape[-1]
        self.pooled_dim = program.inputs["pooled"].shape[-1] if "pooled" in program.inputs else None

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """Keeps it as it is."""
        tokens_BSD, mask_BS, pooled_BP = conditioning
        return PreparedConditioning(mask_BS=mask_BS, embedding_BE=pooled_BP, tokens_BSE=tokens_BSD)

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """Noise - data, sample by sample.

        Raises:
            ValueError: for shapes other than those exported.
        """
        if x_BCHW.is_meta:  # a module counts what its denoiser costs; a program tells nobody
            yield VELOCITY, x_BCHW
            return
        assert conditioning.tokens_BSE is not None
        inputs = {"sample": x_BCHW, "timestep": t_B, "context": conditioning.tokens_BSE}
        mask_BS = conditioning.mask_BS
        if mask_BS is None and "mask" in self.program.inputs:
            mask_BS = torch.ones(conditioning.tokens_BSE.shape[:2])
        told = {"mask": mask_BS, "pooled": conditioning.embedding_BE}
        inputs |= {name: tensor for name, tensor in told.items() if tensor is not None}
        yield VELOCITY, run_rows(self.program, inputs)["velocity"].to(x_BCHW)


class ProgramAutoencoder(Autoencoder):
    """The decoding half of an autoencoder as a program, which takes final latents: raw ones are the same here.

    Args:
        program: the graph ``decoder``.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.channels, height = program.inputs["latent"].shape[1:3]
        self.downsampling = program.outputs["image"].shape[2] // height

    def weights_digest(self) -> str:
        """There are none here."""
        self._refuse()

    def encode(self, image_BCHW: Tensor) -> Posterior:
        """Not exported."""
        self._refuse()

    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        """As they are."""
        return raw_BCHW

    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """As they are."""
        return final_BCHW

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """Final latents -> images, about [-1, 1]."""
        return run_rows(self.program, {"latent": raw_BCHW})["image"].to(raw_BCHW)

    def _refuse(self) -> NoReturn:
        raise ValueError("an exported autoencoder decodes, and nothing else; use the run itself")


class ProgramLabels(ClassConditioner):
    """A conditioner on classes that is a program.

    Args:
        program: the graph ``context``.
        num_classes: as in the conditioner that was exported.
    """

    def __init__(self, program: Program, num_classes: int) -> None:
        _, tokens, context_dim = program.outputs["context"].shape
        super().__init__(num_classes, tokens, context_dim, dropout=0)
        self.program = program

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward."""
        label_B = labels(condition)
        return _conditioning(run_rows(self.program, {"label": label_B}), label_B.device)


class ProgramEncoder:
    """A text encoder whose network is a program; see :class:`~snapgen_pl.conditioning.text_encoder.TextEncoder`.

    Args:
        program: the graph ``text_<name>``.
        tokenizer: of the encoder.
        identity: of the encoder.
    """

    def __init__(self, program: Program, tokenizer: SavedTokenizer, identity: str) -> None:
        self.program, self.tokenizer, self.identity = program, tokenizer, identity
        self.tokens, self.context_dim = program.outputs["tokens"].shape[1:]
        self.pooled_dim = program.outputs["pooled"].shape[-1] if "pooled" in program.outputs else None

    @property
    def masked(self) -> bool:
        """Whether padding is masked."""
        return "attention_mask" in self.program.inputs

    def to(self, device: torch.device) -> Self:
        """Stays on the CPU."""
        return self

    def encode(self, texts: Sequence[str]) -> TextStates:
        """See TextEncoder.encode."""
        ids_BS, mask_BS = self.tokenizer(texts)
        masks = {"attention_mask": mask_BS} if self.masked else {}
        given = run_rows(self.program, {"input_ids": ids_BS, **masks})
        return TextStates(given["tokens"], mask_BS if self.masked else None, given.get("pooled"))

    def encode_once(self, texts: Sequence[str]) -> TextStates:
        """As :meth:`encode`."""
        return self.encode(texts)


class ProgramTexts(PartialTexts):
    """A conditioner on texts that is a program, over encoders that are.

    Args:
        program: the graph ``context``.
        encoders: by the names they had, in the order they had.
    """

    def __init__(self, program: Program, encoders: dict[str, ProgramEncoder]) -> None:
        _, tokens, context_dim = program.outputs["context"].shape
        super().__init__(encoders, tokens, context_dim, dropout=0)
        self.program = program

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward."""
        asked = texts(condition)
        kept = self.kept(asked)
        kept_B = torch.ones(len(asked.captions), dtype=torch.bool)
        inputs = {"kept": torch.stack([kept.get(name, kept_B) for name in self.text_encoders], dim=1)}
        for name, states in self.states(asked).items():
            inputs |= state_inputs(name, states)
        return _conditioning(run_rows(self.program, inputs), self.place.device)


def _conditioning(outputs: Mapping[str, Tensor], device: torch.device) -> Conditioning:
    mask_BS, pooled_BP = outputs.get("mask"), outputs.get("pooled")
    return Conditioning(
        outputs["context"].to(device),
        None if mask_BS is None else (mask_BS > 0.5).to(device),
        None if pooled_BP is None else pooled_BP.to(device),
    )
