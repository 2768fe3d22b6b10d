"""A table of token states a class, made elsewhere."""

import torch
from torch import Tensor

from snapgen_pl.conditioning.class_conditioner import ClassConditioner
from snapgen_pl.conditioning.condition import Condition, TextStates, labels
from snapgen_pl.models.denoiser import Conditioning


class ClassStates(ClassConditioner):
    """Looks up what a frozen text encoder said of each class, and of none.

    The states are held in fp16, half of CLIP-L's 237 MB for 1,000 classes, and given as fp32: fp16 rounds them eight
    times finer than bf16-mixed training does. There is nothing to learn.

    Args:
        num_classes: room for labels 0 to num_classes - 1; the data may have fewer.
        tokens: context tokens a class.
        context_dim: width of a token; the denoiser's context_dim.
        rows: how many states there are, that of no class included.
        masked: whether there is a mask.
        dropout: probability that a training sample loses its label, in [0, 1).
        persistent: whether the states are in its own state, and so in files of weights.

    Raises:
        ValueError: for sizes below 1, or a dropout outside [0, 1).
    """

    states_NSD: Tensor
    mask_NS: Tensor | None

    def __init__(
        self,
        num_classes: int,
        tokens: int,
        context_dim: int,
        rows: int = 0,
        masked: bool = False,
        dropout: float = 0.1,
        persistent: bool = True,
    ) -> None:
        super().__init__(num_classes, tokens, context_dim, dropout)
        self.register_buffer("states_NSD", torch.zeros(rows, tokens, context_dim).half(), persistent)
        self.register_buffer("mask_NS", torch.zeros(rows, tokens).bool() if masked else None, persistent)

    def hold(self, states: TextStates) -> None:
        """Takes a table: row 0 is of no class, row i + 1 of label i."""
        device = self.states_NSD.device
        self.states_NSD = states.tokens_BSD.to(device)
        self.mask_NS = None if states.mask_BS is None else states.mask_BS.to(device)

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward.

        Raises:
            ValueError: while there are no states.
        """
        if not len(self.states_NSD):
            raise ValueError(f"{type(self).__name__} has no states yet; call ready() first")
        label_B = labels(condition)
        # "No class" is row 0: the data may have fewer classes than there is room for.
        row_B = torch.where(label_B == self.null_label, 0, label_B + 1)
        mask_BS = None if self.mask_NS is None else self.mask_NS[row_B]
        return Conditioning(self.states_NSD[row_B].float(), mask_BS)
