"""What a run is made from: data, teachers, frozen networks, and the runs that it began with or learned from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from snapgen_pl.config_files import Value, load_config
from snapgen_pl.pipeline.licences import BY_NAME, EMOJI, EMOJI_LABELS, MINILM, Licence, licence_of
from snapgen_pl.pretrained_folder import HUB_NAME
from snapgen_pl.runs import PIPELINE, Run
from snapgen_pl.trained_run import arguments

CARD = "README.md"
# The key of a model card that lists them.
MADE_FROM = "made_from"
# Arguments of a module that are networks of others, and what they are to the run.
_NETWORKS = {"teacher": "teacher", "conditioner": "text encoder", "autoencoder": "autoencoder"}


class Ingredient(NamedTuple):
    """One of them.

    Attributes:
        role: what it is to the run that it went into.
        name: a name on the Hugging Face hub, or the last part of a path, for where it lay is nobody's concern.
        licence: its owner's; None where that is not known.
        through: the run that brought it in, where it is not the run itself.
    """

    role: str
    name: str
    licence: Licence | None
    through: str = ""

    def facts(self) -> dict[str, Value]:
        """For a model card, or a manifest."""
        return {**self._asdict(), "licence": None if self.licence is None else self.licence.name}


def ingredients(config: dict[str, Value], through: str = "", seen: Sequence[Path] = ()) -> list[Ingredient]:
    """All that a run is made from, and what the runs are made from that it began with or learned from.

    Args:
        config: of the run.
        through: its name, where it is another's ingredient.
        seen: the runs that led here.
    """
    model = arguments(config.get("model"))
    found = list(_data(arguments(config.get("data")), through))
    for key, role in _NETWORKS.items():
        for path, settings in _classes(model.get(key)):
            found += _network(role, path, settings, through)
    for role, folder in _runs(model):
        if folder.resolve() not in seen:
            found += _brought(role, folder, seen)
    # What several runs were made of is told once, of the one at hand.
    once: dict[tuple[str, str], Ingredient] = {}
    for each in found:
        once.setdefault((each.role, each.name), each)
    return list(once.values())


def of_facts(facts: object) -> Ingredient:
    """The ingredient that :meth:`Ingredient.facts` are of; a licence of a name that is not known here is not known.

    Raises:
        ValueError: where they are damaged.
    """
    match facts:
        case {"role": str(role), "name": str(name), "licence": str() | None as licence, "through": str(through)}:
            return Ingredient(role, name, None if licence is None else BY_NAME.get(licence), through)
    raise ValueError(f"{facts!r} does not say what a run was made from")


def _data(data: dict[str, Value], through: str) -> Iterator[Ingredient]:
    source = data.get("source")
    if not isinstance(source, dict):
        named = data.get("shards")
        shards = named if isinstance(named, list) else [named]
        if shards and shards[0]:
            address, _, _ = str(shards[0]).partition("?")  # what comes then may be secret
            yield Ingredient("data", f"tars {_name(address)}", None, through)
        return
    settings, kind = arguments(source), str(source.get("class_path")).rpartition(".")[2]
    if kind != "Emoji":
        places = [str(settings[key]) for key in ("root", "train", "folder") if settings.get(key)]
        yield Ingredient("data", " ".join([kind, *map(_name, places[:1])]), None, through)
        return
    styles = settings.get("styles") or list(EMOJI)
    assert isinstance(styles, list), styles
    for style, (name, licence) in EMOJI.items():
        if style in styles:
            yield Ingredient("data", name, licence, through)
    for name, licence in EMOJI_LABELS:
        yield Ingredient("words of the data", name, licence, through)


def _network(role: str, path: str, settings: dict[str, Value], through: str) -> Iterator[Ingredient]:
    """What a class of a configuration reads."""
    where = settings.get("path")
    if where is None and path.endswith(".MiniLM"):
        where = MINILM
    if isinstance(where, str):
        yield Ingredient(role, _name(where), licence_of(where), through)


def _runs(model: dict[str, Value]) -> Iterator[tuple[str, Path]]:
    """Other runs, by what they are to this one."""
    if isinstance(begun := model.get("init_from"), str):
        yield "begun with", Path(begun)
    for key, argument in (("teacher", "run"), ("autoencoder", "decoder")):
        for _, settings in _classes(model.get(key)):
            if isinstance(folder := settings.get(argument), str):
                yield key if key == "teacher" else argument, Path(folder)


def _brought(role: str, folder: Path, seen: Sequence[Path]) -> list[Ingredient]:
    if (folder / PIPELINE).is_file():
        return _of_card(role, folder)
    if (config := Run(folder).config).is_file():
        return ingredients(load_config(config), folder.name, [*seen, folder.resolve()])
    return [Ingredient(role, f"{folder.name}, a run that is not at hand", None)]


def _of_card(role: str, folder: Path) -> list[Ingredient]:
    """What another pipeline's card says that it is made from."""
    try:
        _, head, _ = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)
        listed = yaml.safe_load(head)[MADE_FROM]
        return [of_facts(each)._replace(through=folder.name) for each in listed]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return [Ingredient(role, f"{folder.name}, a pipeline whose card does not say", None)]


def _classes(value: Value) -> Iterator[tuple[str, dict[str, Value]]]:
    """Every class that a configuration names, and its arguments."""
    if isinstance(value, dict):
        if isinstance(path := value.get("class_path"), str):
            yield path, arguments(value)
        for each in value.values():
            yield from _classes(each)


def _name(path: str) -> str:
    hub = HUB_NAME.fullmatch(path) and not Path(path).parent.is_dir()
    return path if hub else Path(path).name
