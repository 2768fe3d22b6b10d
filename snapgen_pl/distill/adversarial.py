"""Losses of a generator and a discriminator against each other, from logits of "this is real"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AdversarialLoss:
    """SnapGen's, in its printed form log D: softplus; or the hinge of latent adversarial distillation (LADD).

    Printed is min_D max_G E[log D(x) + log(1 - D(x'))], where min and max are exchanged: read as it stands, D has no
    bound. With l the logit of "real", -log D is softplus(-l) and -log(1 - D) is softplus(l).

    Logits are (B, N), one a token, of each head; every method means over tokens, then over heads, in fp32: (B,).

    Args:
        kind: softplus or hinge.
    """

    kind: Literal["softplus", "hinge"] = "softplus"

    def real(self, logits: Sequence[Tensor]) -> Tensor:
        """What a discriminator pays for real latents: softplus(-l), or relu(1 - l)."""
        return _mean(logits, self._doubt)

    def fake(self, logits: Sequence[Tensor]) -> Tensor:
        """What it pays for generated ones: softplus(l), or relu(1 + l)."""
        return _mean(logits, lambda logit_BN: self._doubt(-logit_BN))

    def fool(self, logits: Sequence[Tensor]) -> Tensor:
        """What the generator pays for them: softplus(-l), or -l."""
        return _mean(logits, self._doubt if self.kind == "softplus" else torch.neg)

    def _doubt(self, logit_BN: Tensor) -> Tensor:
        return F.softplus(-logit_BN) if self.kind == "softplus" else F.relu(1 - logit_BN)


def gradient_penalty(logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """R1 (Mescheder et al., 2018) on the features that heads read: the mean over places of |dl / df|^2, over heads.

    Args:
        logits: (B, N) of each head, of real latents.
        features: (B, C, H, W) of each head, which the logits were computed from.

    Returns:
        fp32 (B,), to be differentiated itself.
    """
    total = torch.stack([logit_BN.float().sum() for logit_BN in logits]).sum()
    gradients = torch.autograd.grad(total, list(features), create_graph=True)
    return torch.stack([g.float().square().sum(dim=1).mean(dim=(1, 2)) for g in gradients]).mean(dim=0)


def _mean(logits: Sequence[Tensor], pay: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([pay(logit_BN.float()).mean(dim=1) for logit_BN in logits]).mean(dim=0)
