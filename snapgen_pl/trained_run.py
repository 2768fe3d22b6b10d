"""A run's folder as a source of what was trained there: its configuration, averaged weights and classes."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from snapgen_pl import checkpoints
from snapgen_pl.config_files import Value, load_config
from snapgen_pl.errors import ShortErrors, UsageError
from snapgen_pl.runs import Run

PIPELINE = "model_index.json"  # tells a pipeline of diffusers from a run


class TrainedRun(NamedTuple):
    """A run that something was trained in.

    Attributes:
        folder: the run's.
        config: its configuration.
        checkpoint: its newest.
    """

    folder: Path
    config: dict[str, Value]
    checkpoint: Path

    @property
    def model(self) -> dict[str, Value]:
        """The arguments of its module."""
        return arguments(self.config.get("model"))

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
        """Where the weights are from, in words."""
        return str(self.checkpoint)

    @property
    def decoder(self) -> "TrainedRun | None":
        """The run of the decoder that makes its images, where it is not its autoencoder's own."""
        decoder = arguments(self.model.get("autoencoder")).get("decoder")
        return None if decoder is None else open_run(str(decoder))

    @property
    def images_seen(self) -> int:
        """Images that its weights were trained on, over all processes."""
        return checkpoints.count_in(checkpoints.read(self.checkpoint, verify=False), "images_seen", self.checkpoint)

    def weights_facts(self) -> dict[str, Value]:
        """Which weights its own are, for records."""
        return {"checkpoint": str(self.checkpoint), "step": checkpoints.step_of(self.checkpoint), "weights": "EMA"}

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
            raise ValueError(f"{self.checkpoint} does not fit the run's config.yaml: {error}") from error
        module.eval()

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

    def classes(self) -> tuple[str, ...]:
        """The names of the classes it was trained on; labels index them.

        Raises:
            ValueError: where its manifest does not say them.
        """
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
    run = Run(Path(path))
    if not run.config.is_file():
        raise ValueError(f"{path}: no run there ({run.config} does not exist); give its folder, runs/NAME")
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
