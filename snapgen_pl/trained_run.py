"""Folders as sources of what was trained: configuration, averaged weights and classes; of them, a run's."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from snapgen_pl import checkpoints
from snapgen_pl.asked_size import check_layers, check_size
from snapgen_pl.autoencoders.autoencoder import Autoencoder, without_rounding
from snapgen_pl.config_files import Value, load_config
from snapgen_pl.errors import ShortErrors, UsageError
from snapgen_pl.last_start import LastStart
from snapgen_pl.runs import Run, find_run

# Parts of modules that are trained, and so in checkpoints.
_TRAINED = ("denoiser", "conditioner", "decoder")


@dataclass(frozen=True)
class Trained(ABC):
    """What was trained, to draw from or to begin with: a :class:`TrainedRun`, or a pipeline that was made of one.

    Attributes:
        folder: where it lies.
        config: of its module.
    """

    folder: Path
    config: dict[str, Value]

    @property
    def model(self) -> dict[str, Value]:
        """The arguments of its module."""
        return arguments(self.config.get("model"))

    @property
    def module_name(self) -> str:
        """The name of its module's class; empty where the configuration names none."""
        model = self.config.get("model")
        return str(model.get("class_path", "")).rpartition(".")[2] if isinstance(model, dict) else ""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the weights are from, in words."""

    @property
    @abstractmethod
    def images_seen(self) -> int:
        """Images that its weights were trained on, over all processes; 0 where it does not say."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, by the names of a module's parts.

        Raises:
            ValueError: where files are missing or damaged.
        """

    @abstractmethod
    def weights_facts(self) -> dict[str, Value]:
        """Which weights its own are, for records."""

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The names of the classes it was trained on; labels index them.

        Raises:
            ValueError: where it does not say them.
        """

    def latents(self) -> dict[str, str | int | float]:
        """What the latents that it was trained on depend on: its autoencoder's identity, which is read for it.

        What products were rounded to is left out: it makes no other latents.

        Raises:
            ValueError: where its autoencoder cannot be read.
        """
        try:
            autoencoder: Autoencoder = self.build("a source of latents", autoencoder=Autoencoder).autoencoder
            autoencoder.ready(self.folder, ())
        except ValueError as error:
            raise ValueError(
                f"nothing tells which latents {self.folder} was trained on: it has no record of them, and the "
                f"autoencoder that it declares cannot be read: {error}"
            ) from error
        return without_rounding(autoencoder.identity())

    def autoencoder_rounded(self) -> bool:
        """Whether its autoencoder's weights were rounded after it was trained, and are not those of its latents."""
        return False

    def build(self, purpose: str, **bases: type) -> Namespace:
        """Builds parts of its module, without their weights.

        Args:
            purpose: what they are to be, in words.
            bases: the class that each part is a subclass of, by its argument.

        Returns:
            The parts, by their arguments.

        Raises:
            ValueError: where a part is missing, or cannot be built.
        """
        try:
            # Weights are drawn, and soon replaced: what is built beside them must not begin elsewhere for it.
            with torch.random.fork_rng(devices=[]):
                return built(self.model, **bases)
        except (UsageError, ValueError) as error:
            where = f"{error.key}: " if isinstance(error, UsageError) else ""
            raise ValueError(f"{self.folder} cannot be built as {purpose}: {where}{error}") from error

    @property
    def decoder(self) -> "TrainedRun | None":
        """The run of the decoder that makes its images, where it is not its own."""
        decoder = arguments(self.model.get("autoencoder")).get("decoder")
        return None if decoder is None else open_run(str(decoder))

    def facts(self) -> dict[str, Value]:
        """Which weights its images are of: its own, and those of another run's decoder."""
        decoder = self.decoder
        return self.weights_facts() | ({} if decoder is None else {"decoder": decoder.facts()})

    def load(self, module: nn.Module) -> None:
        """Puts the averaged weights in a module, those that it has a place for, and leaves it in eval mode.

        Raises:
            ValueError: where they do not fit it.
        """
        try:
            fill_parts(module, self.weights())
        except RuntimeError as error:
            raise ValueError(f"{self.origin} does not fit its configuration: {error}") from error
        module.eval()


@dataclass(frozen=True)
class TrainedRun(Trained):
    """A run that something was trained in.

    Attributes:
        folder: the run's.
        config: its configuration.
        checkpoint: its newest.
    """

    checkpoint: Path

    def weights(self) -> dict[str, Tensor]:
        """The module's state with the averaged weights, in the file's map.

        Raises:
            ValueError: where nothing was averaged, or the checkpoint is damaged.
        """
        match checkpoints.read(self.checkpoint):
            case {"state_dict": dict(raw), "ema": {"weights": dict(averaged)}}:
                weights = {**raw, **averaged}
            case _:
                raise ValueError(f"{self.checkpoint} holds no averaged weights, which alone are used")
        if strangers := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
            raise ValueError(f"{self.checkpoint} is damaged: its weight {strangers[0]!r} is no tensor")
        return weights

    @property
    def origin(self) -> str:
        """The checkpoint."""
        return str(self.checkpoint)

    @property
    def images_seen(self) -> int:
        """As the checkpoint says."""
        return checkpoints.count_in(checkpoints.read(self.checkpoint, verify=False), "images_seen", self.checkpoint)

    def weights_facts(self) -> dict[str, Value]:
        """The checkpoint and its step."""
        return {"checkpoint": str(self.checkpoint), "step": checkpoints.step_of(self.checkpoint), "weights": "EMA"}

    def build(self, purpose: str, **bases: type) -> Namespace:
        """See Trained.build; parts that are trained may be no larger than the checkpoint."""
        parts = {name: self.model[name] for name in bases if name in _TRAINED and name in self.model}
        config, size = Run(self.folder).config, self.checkpoint.stat().st_size
        check_layers(parts, config)
        check_size(lambda: built(parts, **dict.fromkeys(parts, nn.Module)), size, config)
        return super().build(purpose, **bases)

    def latents(self) -> dict[str, str | int | float]:
        """As its manifest says; see Trained.latents for manifests older than that."""
        run = Run(self.folder)
        identity = LastStart(self.folder).said(dict, "autoencoder") if run.manifest.exists() else None
        return super().latents() if identity is None else without_rounding(identity)

    def classes(self) -> tuple[str, ...]:
        """As its manifest says."""
        run = Run(self.folder)
        match run.starts()[-1].get("data"):
            case {"classes": [*classes]} if all(isinstance(name, str) for name in classes):
                return tuple(classes)
        raise ValueError(f"{run.manifest} does not say what classes the run was trained on; put it back")


def fill_parts(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts weights in those parts of a module that they are called after.

    Raises:
        RuntimeError: where a part's weights are missing, foreign or misshapen.
    """
    parts = {name for name, _ in module.named_children()}
    module.load_state_dict({name: weight for name, weight in weights.items() if name.split(".")[0] in parts})


def open_run(path: str) -> TrainedRun:
    """The run in a folder; its weights are not read yet.

    Raises:
        ValueError: for a folder that is no run, or a damaged checkpoint.
        FileNotFoundError: where the run has no checkpoint.
    """
    run = find_run(path)
    return TrainedRun(run.folder, load_config(run.config), checkpoints.newest(run.folder))


def arguments(node: Value) -> dict[str, Value]:
    """The arguments of a class in a config, whether it stands there with its class_path or alone."""
    if not isinstance(node, dict):
        return {}
    found = node.get("init_args") if "class_path" in node else node
    return found if isinstance(found, dict) else {}


def built(config: Mapping[str, Value], **bases: type) -> Namespace:
    """Builds parts of a configuration.

    Args:
        config: holds each part under its key.
        bases: the class that each part is a subclass of, by key.

    Returns:
        The parts, by key.

    Raises:
        ValueError: where a part is missing.
        UsageError: where one cannot be built.
    """
    if missing := [key for key in bases if config.get(key) is None]:
        raise ValueError(f"the run's configuration has no {' and no '.join(missing)}")
    parser = ShortErrors()
    for key, base in bases.items():
        parser.add_subclass_arguments(base, key, required=True)
    # A copy: jsonargparse puts objects of its own into what it parses.
    given = copy.deepcopy({key: config[key] for key in bases})
    parts: Namespace = parser.instantiate(parser.parse_object(given))
    return parts
