"""Which items are held out for validation: decided by their name alone, so that it never changes."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

DEFAULT_VALIDATION_FRACTION = 0.05


class Item(Protocol):
    """What a split needs to know of an image.

    Attributes:
        path: the folder of its class and its place there, with forward slashes: what it is held out by.
        label: its class.
        size: in bytes.
    """

    @property
    def path(self) -> str: ...  # noqa: D102  (documented above)

    @property
    def label(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102


ItemT = TypeVar("ItemT", bound=Item)


def held_out(name: str, fraction: float) -> bool:
    """Whether ``name`` falls into the held-out fraction: its SHA-256, read as a number in [0, 1), is below it."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64 < fraction


def check_fraction(validation_fraction: float | None) -> None:
    """Refuses a fraction that would hold out nothing or everything.

    Raises:
        ValueError: with the fraction.
    """
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")


def check_not_both(validation_fraction: float | None, validation: Path | None, remedy: str) -> None:
    """Refuses a fraction to hold out where there is a validation set already.

    Args:
        validation_fraction: what the user asked for.
        validation: where the validation set is, if there is one.
        remedy: what else to do than to leave the fraction out.

    Raises:
        ValueError: with both.
    """
    if validation is not None and validation_fraction is not None:
        raise ValueError(
            f"validation_fraction is {validation_fraction}, but {validation} is the validation set; "
            f"leave validation_fraction out, or {remedy}"
        )


def hold_out(
    items: Sequence[ItemT], classes: Sequence[str], where: Path, validation_fraction: float | None, remedy: str
) -> tuple[list[ItemT], list[ItemT]]:
    """Items to train on and held-out items, both in order.

    Args:
        items: all of them.
        classes: names of their classes.
        where: what holds the items, for errors.
        validation_fraction: the share to hold out; 0.05 if None.
        remedy: how to provide a validation set instead.

    Raises:
        ValueError: where no item is held out, or all of a class.
    """
    fraction = DEFAULT_VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    train: list[ItemT] = []
    validation: list[ItemT] = []
    for item in items:
        (validation if held_out(item.path, fraction) else train).append(item)
    remedies = f"change validation_fraction, add images, or {remedy}"
    if not validation:
        raise ValueError(f"no image of the {len(items)} in {where} falls into the {fraction:g} held out; {remedies}")
    trained = {item.label for item in train}
    if left := [name for label, name in enumerate(classes) if label not in trained]:
        raise ValueError(f"every image of {', '.join(left)} in {where} is held out for validation; {remedies}")
    return train, validation


def labels_of(names: Iterable[str], classes: Iterable[str], validation: Path) -> dict[str, int]:
    """The label of each class of a validation set.

    Args:
        names: the validation set's classes.
        classes: the training set's, in the order of their labels.
        validation: where the validation set is, for errors.

    Raises:
        ValueError: naming classes that the training set lacks.
    """
    label = {name: index for index, name in enumerate(classes)}
    if unknown := sorted(set(names) - set(label)):
        raise ValueError(f"{validation} has classes that the training set lacks: {', '.join(unknown)}")
    return {name: label[name] for name in names}


def fingerprint(classes: Sequence[str], train: Sequence[Item], validation: Sequence[Item]) -> str:
    """SHA-256 over the classes and every item's split, path and size (not its content)."""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    for split, items in (("train", train), ("validation", validation)):
        for item in items:
            digest.update(f"\n{split}\0{item.path}\0{item.size}".encode(errors="surrogateescape"))
    return digest.hexdigest()
