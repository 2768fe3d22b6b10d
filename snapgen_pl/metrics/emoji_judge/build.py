"""Trains the judge on the embedded emoji: ``python -m snapgen_pl.metrics.emoji_judge.build``.

Needs the extra ``demo`` and a quarter of an hour on two cores. The training split alone is trained on; the held-out one
is judged once, for the figures that the file carries. On one machine it makes the same weights each time; elsewhere
they differ in their last bits.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.progress import track
from torch import Tensor

from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.data.emoji import Emoji, EmojiSet
from snapgen_pl.data.emoji.vendored import STYLES
from snapgen_pl.metrics.controls import CONTROLS, REAL
from snapgen_pl.metrics.efficientnet import EfficientNetLite0
from snapgen_pl.metrics.emoji_judge.captions import Captions, sentences
from snapgen_pl.metrics.emoji_judge.fit import Examples, Recipe, fit_caption_map, fit_style_map
from snapgen_pl.metrics.emoji_judge.maps import FILE, Figures, JudgeMaps, Origin, means

SHUFFLED = "shuffled"
_SEED = 0
_INPUT_SIZE = 224  # what the network was trained at; chosen by cross-validation, among 64 to 256
_FOLDS = 5
_BATCH = 64


def main(out: Path = FILE) -> None:
    """Trains a judge, has it judge held-out emoji and controls, and writes it.

    Args:
        out: the file; by default, the one in this package.
    """
    source = Emoji().open()
    train, held_out = source.train, source.validation
    assert isinstance(train, EmojiSet)
    assert isinstance(held_out, EmojiSet)
    network, encoder = EfficientNetLite0(_INPUT_SIZE), MiniLM(pooled=True, truncate=True)
    origin = Origin(source.fingerprint, network.digest, _INPUT_SIZE, encoder.fingerprint())
    examples = _examples(train, image_features(network, pixels(train), "training images"), encoder)
    maps = _fitted(examples, origin)
    maps = replace(
        maps,
        figures=_figures(maps, network, held_out, Captions.of(held_out, encoder)),
        recipe={**maps.recipe, "cross_validated": _cross_validated(examples, origin)},
    )
    maps.write(out)
    print(*(f"{name}: {value}" for name, value in {**maps.figures, **maps.recipe}.items()), sep="\n")
    print(f"Written to {out}")


def pixels(images: EmojiSet) -> Tensor:
    """uint8 (N, 3, 64, 64)."""
    return images.image_BHWC.permute(0, 3, 1, 2)


def image_features(network: EfficientNetLite0, image_BCHW: Tensor, what: str) -> Tensor:
    """(N, 1280), batch by batch, showing how far it is."""
    starts = track(range(0, len(image_BCHW), _BATCH), f"features of {what}")
    return torch.cat([network(image_BCHW[start : start + _BATCH]) for start in starts])


def _examples(images: EmojiSet, features_ND: Tensor, encoder: TextEncoder) -> Examples:
    """A set's examples; it has style after style, in the order of ``STYLES``."""
    concepts = images.concepts[: len(images) // len(STYLES)]
    words = sorted({tag for concept in concepts for tag in concept.tags})
    place = {word: index for index, word in enumerate(words)}
    captions = sentences(encoder, [images.caption(index) for index in range(len(images))])
    by_tags = sentences(encoder, [f"a {word}, {style} style" for style in STYLES for word in words])
    return Examples(
        _by_style(features_ND),
        _by_style(captions),
        _by_style(by_tags),
        tuple(tuple(place[tag] for tag in concept.tags) for concept in concepts),
    )


def _by_style(values_ND: Tensor) -> Tensor:
    return values_ND.view(len(STYLES), -1, values_ND.shape[1])


def _fitted(examples: Examples, origin: Origin) -> JudgeMaps:
    recipe = Recipe()
    return JudgeMaps(
        caption=fit_caption_map(examples, recipe, _SEED).half(),
        style=fit_style_map(examples.features_SCD, recipe.style_penalty).half(),
        origin=origin,
        figures={},
        recipe=asdict(recipe),
    )


def _cross_validated(examples: Examples, origin: Origin) -> dict[str, float]:
    """The values of training concepts that were left out of training, judged among each other: means over folds."""
    folds = track(examples.folds(_FOLDS, _SEED), "cross-validation", total=_FOLDS)
    judged = []
    for rest, left_out in folds:
        sentence_KD = left_out.caption_SCE.flatten(0, 1)
        styles = torch.arange(len(STYLES)).repeat_interleave(len(left_out.tags))
        features_ND = left_out.features_SCD.flatten(0, 1)
        every = torch.arange(len(sentence_KD))
        judged.append(_fitted(rest, origin).judge(features_ND, Captions({}, styles, sentence_KD), every))
    return means(torch.cat(judged))


def _figures(maps: JudgeMaps, network: EfficientNetLite0, held_out: EmojiSet, captions: Captions) -> Figures:
    """Of the held-out images: as they are, degraded, and under each other's captions of the same style."""
    own_N = captions.find([held_out.caption(index) for index in range(len(held_out))])
    found = {}
    for control in CONTROLS:
        features_ND = image_features(network, control.degrade(pixels(held_out)), f"held-out images, {control.name}")
        found[control.name] = means(maps.judge(features_ND, captions, own_N))
        if control is REAL:
            found[SHUFFLED] = means(maps.judge(features_ND, captions, shuffled(own_N)))
    return found


def shuffled(own_N: Tensor) -> Tensor:
    """Every caption handed on within its style, round a circle in random order: the images have style after style."""
    own_SC = own_N.view(len(STYLES), -1)
    order_C = torch.randperm(own_SC.shape[1], generator=torch.Generator().manual_seed(_SEED))
    handed_SC = torch.empty_like(own_SC)
    handed_SC[:, order_C] = own_SC[:, order_C.roll(1)]
    return handed_SC.flatten()


if __name__ == "__main__":
    auto_cli(main)
