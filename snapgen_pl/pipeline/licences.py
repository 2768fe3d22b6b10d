"""Licences of what runs are made from, as their owners name them. None of this is legal advice, nor complete."""

from collections.abc import Iterable
from typing import NamedTuple

from snapgen_pl.data.emoji.vendored import Style


class Licence(NamedTuple):
    """A licence, and what it asks.

    Attributes:
        name: in words.
        identifier: what model cards call it; "other" where they have no word for it.
        short: a word for it where they have none.
        link: to its text.
        restricts: how much, beside the others here: 0 asks for notices alone.
        asks: of whoever uses or passes on what is made with it; empty for notices alone.
        notice: that has to go along.
    """

    name: str
    identifier: str
    restricts: int
    link: str = ""
    short: str = ""
    asks: tuple[str, ...] = ()
    notice: str = ""


MIT = Licence("MIT", "mit", 0)
UNICODE = Licence("Unicode-3.0", "other", 0, "https://www.unicode.org/license.txt", "unicode-3.0")
APACHE = Licence("Apache-2.0", "apache-2.0", 1, "https://www.apache.org/licenses/LICENSE-2.0")
CC_BY = Licence(
    "CC-BY-4.0",
    "cc-by-4.0",
    2,
    "https://creativecommons.org/licenses/by/4.0/",
    asks=("Name the authors, link to the licence, and say what was changed.",),
)
GEMMA = Licence(
    "Gemma Terms of Use",
    "gemma",
    3,
    "https://ai.google.dev/gemma/terms",
    asks=(
        "Pass the terms on to whoever gets the model, and the restrictions of their section 3.2 in your agreement.",
        "Use it within the Gemma Prohibited Use Policy, https://ai.google.dev/gemma/prohibited_use_policy.",
        "Keep the line of the file NOTICE, and mark files that you change.",
    ),
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
)
STABILITY = Licence(
    "Stability AI Community License",
    "other",
    4,
    "https://stability.ai/community-license-agreement",
    "stabilityai-ai-community",
    (
        'Show "Powered by Stability AI" prominently on a website, user interface, about page, blog post or product '
        "documentation.",
        "Commercial use is free below USD 1,000,000 of annual revenue, after registration with Stability AI; above, it "
        "takes their enterprise licence.",
        "Give a copy of the agreement, and the file NOTICE, to whoever gets the model or a product of it.",
        "Do not use the model or its images to create or improve a foundational generative model, other than Stability "
        "AI's models and derivative works of them.",
        "Keep to Stability AI's acceptable use policy, https://stability.ai/use-policy.",
        "A model derived from theirs or from its output, such as one that was distilled, is a derivative work by its "
        "definition, and falls under it.",
    ),
    "This Stability AI Model is licensed under the Stability AI Community License, Copyright © Stability AI Ltd. All "
    "Rights Reserved",
)
CC_BY_NC = Licence(
    "CC-BY-NC-4.0",
    "cc-by-nc-4.0",
    5,
    "https://creativecommons.org/licenses/by-nc/4.0/",
    asks=("No commercial use.", "Name the authors, link to the licence, and say what was changed."),
)
FLUX_DEV = Licence(
    "FLUX.1 [dev] Non-Commercial License",
    "other",
    6,
    short="flux-1-dev-non-commercial-license",
    asks=("No commercial use of the model; read the licence in its repository for the rest.",),
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# By their names on the Hugging Face hub. What lies in a repository is taken to be under the repository's licence, also
# where it comes from elsewhere, as CLIP in Stable Diffusion's.
WEIGHTS: dict[str, Licence] = {
    "stabilityai/stable-diffusion-3.5-large": STABILITY,
    "stabilityai/stable-diffusion-3.5-large-turbo": STABILITY,
    "stabilityai/stable-diffusion-3.5-medium": STABILITY,
    "google/gemma-2-2b": GEMMA,
    "openai/clip-vit-large-patch14": MIT,
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": MIT,
    "google/t5-v1_1-xxl": APACHE,
    MINILM: APACHE,
    "stabilityai/sd-vae-ft-ema": MIT,
    "stabilityai/sdxl-vae": MIT,
    "black-forest-labs/FLUX.1-schnell": APACHE,
    "black-forest-labs/FLUX.1-dev": FLUX_DEV,
    "facebook/DiT-XL-2-256": CC_BY_NC,
}

# snapgen_pl/data/emoji/licenses has the texts.
EMOJI: dict[Style, tuple[str, Licence]] = {
    "noto": ("Noto Emoji, Google Inc.", APACHE),
    "fluent-flat": ("Fluent Emoji, flat, Microsoft Corporation", MIT),
    "fluent-3d": ("Fluent Emoji, 3D, Microsoft Corporation; files prepared by LobeHub", MIT),
    "twemoji": ("Twemoji, Twitter, Inc and other contributors", CC_BY),
}
EMOJI_LABELS = (("emojibase, Miles Johnson", MIT), ("CLDR, Unicode, Inc.", UNICODE))

BY_NAME = {each.name: each for each in (MIT, UNICODE, APACHE, CC_BY, GEMMA, STABILITY, CC_BY_NC, FLUX_DEV)}


def licence_of(path: str) -> Licence | None:
    """The licence of weights that lie at a path: a name on the hub, or a folder called like one of its repositories.

    Returns:
        None where it is not known; nothing is guessed from contents.
    """
    if path in WEIGHTS:
        return WEIGHTS[path]
    called = path.rstrip("/").rpartition("/")[2]
    return next((licence for name, licence in WEIGHTS.items() if name.rpartition("/")[2] == called), None)


def most_restrictive(licences: Iterable[Licence | None]) -> Licence | None:
    """The one of several that asks most; None where none is known, or one is not and the others ask for little."""
    found = list(licences)
    strictest = max((each for each in found if each is not None), key=lambda each: each.restricts, default=None)
    if None in found and (strictest is None or strictest.restricts < GEMMA.restricts):
        return None
    return strictest
