"""What licences of a model's ingredients ask, in words that go along with it."""

from collections.abc import Iterable, Sequence

from snapgen_pl.markdown import table
from snapgen_pl.pipeline.ingredients import Ingredient
from snapgen_pl.pipeline.licences import Licence, most_restrictive

_UNKNOWN = "unknown: ask the owner"


def notice(made_from: Sequence[Ingredient], run: str) -> str:
    """The lines that licences ask to go along with a model; empty where none does.

    Args:
        made_from: its ingredients.
        run: the name of the run that trained it.
    """
    lines = [each.notice for each in known(made_from) if each.notice]
    changed = f"The weights of the denoiser were trained by snapgen_pl, run {run}."
    return "\n".join([*lines, changed, ""]) if lines else ""


def terms(made_from: Sequence[Ingredient]) -> str:
    """Licences of all that a model is made from, and what they ask, as Markdown."""
    rows = (
        (each.role + (f" of {each.through}" if each.through else ""), each.name,
         _UNKNOWN if each.licence is None else _linked(each.licence))
        for each in made_from
    )  # fmt: skip
    whole = most_restrictive(each.licence for each in made_from)
    unknown = any(each.licence is None for each in made_from)
    if whole is None:
        verdict = (
            "The licence of the whole is not known: ask the owners of what is unknown below before you pass it on."
        )
    else:
        verdict = f"Of the licences of all that went in, the strictest is {whole.name}, which stands for the whole."
        verdict += " What is unknown below may ask for more: ask its owners." if unknown else ""
    asks = [
        f"**{each.name}** asks:\n\n" + "\n".join(f"- {line}" for line in each.asks)
        for each in known(made_from)
        if each.asks
    ]
    return "\n\n".join(
        [
            f"{verdict} The code is Apache-2.0. Folders are told by their names alone, and this is no legal advice: "
            "read the licences.",
            table(("what for", "what", "licence"), rows),
            *asks,
        ]
    )


def known(made_from: Iterable[Ingredient]) -> list[Licence]:
    """The licences that are known, each once, the strictest first."""
    found = dict.fromkeys(each.licence for each in made_from if each.licence is not None)
    return sorted(found, key=lambda each: -each.restricts)


def _linked(licence: Licence) -> str:
    return f"[{licence.name}]({licence.link})" if licence.link else licence.name
