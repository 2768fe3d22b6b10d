"""What draws images, and what its weights are from."""

import importlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.config_files import Value, class_value
from snapgen_pl.data.buckets import Size
from snapgen_pl.data.requests import Request
from snapgen_pl.trained_run import arguments, built


@runtime_checkable
class Draws(Protocol):
    """A module that draws images, such as :class:`~snapgen_pl.modules.pretrain.Pretrain`.

    Attributes:
        takes: what it is asked with.
    """

    @property
    def takes(self) -> Literal["label", "caption"]: ...  # noqa: D102  (documented above)

    def ready(self, folder: Path, images: Iterable[Tensor], classes: tuple[str, ...]) -> list[str]:
        """Makes what the module uses usable, given the run's folder; returns lines for the user."""
        ...

    def keep(self, condition: Condition, encoders: Sequence[str]) -> Condition:
        """The condition through some of its text encoders alone."""
        ...

    def check_sides(self, name: str, *sides: int) -> None:
        """Raises ValueError for sides of images, in pixels, that its networks do not take."""
        ...

    def sample(self, request: Request, *, size: Size | None = None) -> Tensor:
        """uint8 images (B, 3, H, W), moved to where the module is; of its own size, or of another that it takes."""
        ...


class Source(Protocol):
    """Where a module that draws comes from: a :class:`~snapgen_pl.trained_run.Trained`, or exported programs.

    Attributes:
        folder: for what the module keeps there.
        config: of the module.
        origin: of the weights, in words.
    """

    @property
    def folder(self) -> Path: ...  # noqa: D102  (documented above)

    @property
    def config(self) -> dict[str, Value]: ...  # noqa: D102

    @property
    def origin(self) -> str: ...  # noqa: D102

    def facts(self) -> dict[str, Value]:
        """Which weights they are, for records."""
        ...

    def classes(self) -> tuple[str, ...]:
        """The names of the classes; labels index them."""
        ...

    def load(self, module: nn.Module) -> None:
        """Puts the weights in the module, and leaves it in eval mode."""
        ...


def built_module(config: dict[str, Value]) -> Any:
    """The module of a config, or what it draws as: a student without its teacher. It has no weights yet.

    Raises:
        ValueError: where it draws nothing, or cannot be built.
    """
    from lightning.pytorch import LightningModule

    from snapgen_pl.terminal import quiet

    quiet()
    model = config["model"]
    assert isinstance(model, dict)
    module, _, name = str(model["class_path"]).rpartition(".")
    try:
        kind: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the run's module cannot be imported ({error}); use the code that it was made with"
        ) from error
    drawing: type = vars(kind).get("draws_as", kind)  # not of a base: a subclass may draw otherwise
    takes = inspect.signature(drawing).parameters
    init_args = {key: value for key, value in arguments(model).items() if drawing is kind or key in takes}
    model = built({"model": class_value(drawing, **init_args)}, model=LightningModule).model
    if not isinstance(model, Draws):
        raise ValueError(f"{type(model).__name__} draws no images")
    return model
