"""Fits the judge's maps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snapgen_pl.metrics.emoji_judge.linear import LinearMap, Standardisation


@dataclass(frozen=True)
class Recipe:
    """How the maps are trained; chosen by cross-validation on the training concepts alone.

    Attributes:
        steps: AdamW's, with a cosine decay of the learning rate.
        batch: concepts in a step, all in one style: a batch's other captions are what an image is told from, and style
            tells nothing among them.
        learning_rate: at the start.
        weight_decay: AdamW's, of the weight.
        noise: standard deviation of what is added to standardised features.
        tags: how often a tag stands for the label in a caption.
        temperature: at the start; it is learned.
        style_penalty: half of it times the squared weights is added to the loss of the map that tells styles apart.
    """

    steps: int = 1000
    batch: int = 128
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    noise: float = 0.5
    tags: float = 0.2
    temperature: float = 0.05
    style_penalty: float = 0.03


class Examples(NamedTuple):
    """C concepts in S styles.

    Attributes:
        features_SCD: fp32, of images.
        caption_SCE: their captions' sentences.
        tag_STE: the sentences of captions that name each of T tags instead.
        tags: per concept, which of the T it has.
    """

    features_SCD: Tensor
    caption_SCE: Tensor
    tag_STE: Tensor
    tags: tuple[tuple[int, ...], ...]

    def some(self, concepts_C: Tensor) -> "Examples":
        """Those of some concepts, int64 (C',)."""
        return Examples(
            self.features_SCD[:, concepts_C],
            self.caption_SCE[:, concepts_C],
            self.tag_STE,
            tuple(self.tags[index] for index in concepts_C.tolist()),
        )

    def folds(self, count: int, seed: int) -> Iterator[tuple["Examples", "Examples"]]:
        """For each of ``count`` parts of the concepts, all that is not of it, and what is."""
        order_C = torch.randperm(len(self.tags), generator=torch.Generator().manual_seed(seed))
        for part_C in order_C.chunk(count):
            yield self.some(order_C[~torch.isin(order_C, part_C)]), self.some(part_C)


def fit_caption_map(examples: Examples, recipe: Recipe, seed: int) -> LinearMap:
    """The map to sentences, by CLIP's symmetric cross-entropy (Radford et al., 2021) with a learned temperature."""
    generator = torch.Generator().manual_seed(seed)
    standardised = Standardisation.of(examples.features_SCD.flatten(0, 1))
    batches = _Batches(examples._replace(features_SCD=standardised(examples.features_SCD)), recipe, generator)

    # Small, so that what is learned outweighs it.
    shape = examples.caption_SCE.shape[-1], examples.features_SCD.shape[-1]
    weight = torch.randn(shape, generator=generator).mul(3e-4).requires_grad_()
    bias = torch.zeros(len(weight), requires_grad=True)
    log_scale = torch.tensor(-math.log(recipe.temperature), requires_grad=True)
    groups = [
        {"params": [weight], "weight_decay": recipe.weight_decay},
        {"params": [bias, log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        image_BD, text_BE = batches.draw()
        logits_BB = log_scale.exp() * F.normalize(F.linear(image_BD, weight, bias), dim=1) @ text_BE.T
        own_B = torch.arange(len(image_BD))
        loss = (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return standardised.before(LinearMap(weight.detach(), bias.detach()))


class _Batches:
    """Draws concepts in one style, noise on their features, and a caption or the same with a tag in the label's place.

    Args:
        examples: with standardised features.
        recipe: says how.
        generator: draws.
    """

    def __init__(self, examples: Examples, recipe: Recipe, generator: torch.Generator) -> None:
        self.examples, self.recipe, self.generator = examples, recipe, generator
        self._counts_C = torch.tensor([len(tags) for tags in examples.tags])
        tags = [torch.tensor(tags).long() for tags in examples.tags]
        self._tags_CK = torch.nn.utils.rnn.pad_sequence(tags, batch_first=True)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Features (B, D) and sentences (B, E)."""
        styles, concepts, _ = self.examples.features_SCD.shape
        style = int(torch.randint(styles, (), generator=self.generator))
        drawn_B = torch.randperm(concepts, generator=self.generator)[: self.recipe.batch]
        image_BD = self.examples.features_SCD[style, drawn_B]
        image_BD = image_BD + self.recipe.noise * torch.randn(image_BD.shape, generator=self.generator)
        counts_B = self._counts_C[drawn_B]
        by_tag_B = (self._uniform(len(drawn_B)) < self.recipe.tags) & (counts_B > 0)
        which_B = (self._uniform(len(drawn_B)) * counts_B).long()
        text_BE = torch.where(
            by_tag_B[:, None],
            self.examples.tag_STE[style, self._tags_CK[drawn_B, which_B]],
            self.examples.caption_SCE[style, drawn_B],
        )
        return image_BD, text_BE

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator)


def fit_style_map(features_SCD: Tensor, penalty: float) -> LinearMap:
    """Penalised logistic regression of the style, by L-BFGS: convex, so nothing is drawn."""
    styles, concepts, width = features_SCD.shape
    features_ND = features_SCD.flatten(0, 1)
    standardised = Standardisation.of(features_ND)
    features_ND = standardised(features_ND)
    style_N = torch.arange(styles).repeat_interleave(concepts)
    weight = torch.zeros(styles, width, requires_grad=True)
    bias = torch.zeros(styles, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features_ND, weight, bias), style_N) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return standardised.before(LinearMap(weight.detach(), bias.detach()))
