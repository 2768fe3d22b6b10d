"""The trainer's verbs: fit, validate, test and predict over any LightningModule and LightningDataModule.

This is the composition root: the one module of snapgen_pl that imports ``callbacks``, which elsewhere depends on
snapgen_pl and never the other way round.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

import snapgen_pl
from callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint
from callbacks.ema import EMA
from callbacks.lost_process import LostProcess
from callbacks.nonfinite import NonFinite
from callbacks.progress import StepProgress
from callbacks.rng_state import RngState
from callbacks.run_manifest import RunManifest
from callbacks.tensorboard import RunLogger, RunPage
from callbacks.termination import Termination
from callbacks.throughput import Throughput
from snapgen_pl.config_files import parse_yaml
from snapgen_pl.errors import ShortErrors
from snapgen_pl.fsdp import FSDP2
from snapgen_pl.runs import CONFIG, Run, Start, table
from snapgen_pl.terminal import quiet

SEED = 0
SHARDED = f"{FSDP2.__module__}.{FSDP2.__name__}"

# In every run, each under a key of its own in configs.
CONFIGURABLE: dict[str, type[L.Callback]] = {
    "ema": EMA,
    "tensorboard": RunPage,
    "throughput": Throughput,
    "checkpoint": LastCheckpoint,
}
# In every run, with nothing to configure; after those above, since a run that Termination ends must have averaged its
# last step. LostProcess, which may raise where a run fails, comes after all that put things back then. Lightning itself
# moves LastCheckpoint, a ModelCheckpoint, behind all others.
PLAIN: tuple[type[L.Callback], ...] = (RunManifest, RngState, NonFinite, Termination, LostProcess)

TRAINER_DEFAULTS = {
    # Data comes as one endless epoch, each rank taking its slice: see snapgen_pl.data. trainer.max_steps ends a run.
    "max_epochs": -1,
    "use_distributed_sampler": False,
    "check_val_every_n_epoch": None,
    "val_check_interval": 1000,
    # A broken validation shows at its first turn; before training it would only delay the start of every session.
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
}


class Parser(ShortErrors, LightningArgumentParser):
    """Lightning's parser with short errors."""


class SaveConfig(SaveConfigCallback):
    """Claims the run's folder before ``fit`` starts, and writes the resolved configuration into it and each checkpoint.

    Args:
        parser: dumps the configuration.
        config: the configuration of the verb.
        run: where to.
        start: whether the session begins the run's history or continues it.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, run: Run, start: Start) -> None:
        super().__init__(parser, config)
        self.run = run
        self.start = start
        self._claim: FileLock | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes, on the first rank."""
        self._text = _dump(self.parser, self.config)
        if trainer.is_global_zero:
            self.run.write_config(self._text, self.start)

    def claim(self) -> None:
        """Claims the folder for as long as the process trains.

        Raises:
            ValueError: where another process trains there, or has since this one looked.
        """
        self._claim = self.run.claim()
        if self.run.start(str(self.start.checkpoint) if self.start.checkpoint else None) != self.start:
            raise ValueError(f"another process has continued {self.run.folder} meanwhile; give the command again")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the configuration in."""
        checkpoint[CONFIG] = self._text

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the folder up."""
        if self._claim is not None:
            self._claim.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the folder up."""
        self.teardown(trainer, pl_module, "fit")


class RunCLI(LightningCLI):
    """Lightning's CLI over a run folder.

    Attributes:
        run: the folder ``runs/name``, the trainer's default_root_dir.
        start: where the session starts.
    """

    run: Run
    start: Start

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's place and the callbacks that are always on."""
        parser.add_argument("--name", type=str, required=True, help="The run's name: a folder below `runs`.")
        parser.add_argument("--runs", type=str, default="runs", help="The folder of all runs.")
        for key, callback in CONFIGURABLE.items():
            parser.add_lightning_class_args(callback, key)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and decides where to start before anything is built."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        settings = self._settings()
        self.run = _run(settings.runs, settings.name)
        if self.config.subcommand == "fit":
            _check_end(settings.trainer)
            self.start = self.run.start(settings.ckpt_path)
        else:
            self.start = Start(self.run.checkpoint(settings.ckpt_path))
        # Left in place, Lightning would read the file here, and let hyperparameters in it override configs and flags.
        settings.ckpt_path = None

    def before_instantiate_classes(self) -> None:
        """Puts the checkpoint found in place, and says where the session starts."""
        settings = self._settings()
        settings.ckpt_path = str(self.start.checkpoint) if self.start.checkpoint else None
        self.save_config_callback = SaveConfig if self.subcommand == "fit" else None
        self.save_config_kwargs = {"run": self.run, "start": self.start}
        text = _opening(self.subcommand or "", self.run, self.start)
        if self.start.resumes:
            assert self.start.checkpoint is not None
            changed = self.run.check_unchanged(parse_yaml(_dump(self._parser(self.subcommand), settings)))
            self.run.check_own(self.start.checkpoint)
            text += f"; differs from {self.run.config}:\n{table(changed)}" if changed else ""
        _say(text)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer of the run's folder."""
        given = self.config_init[str(self.subcommand)].trainer
        if given.default_root_dir is not None:
            raise ValueError("trainer.default_root_dir is runs/name; set --runs and --name instead")
        kwargs["default_root_dir"] = str(self.run.folder)
        if given.logger is None or given.logger is True:
            kwargs["logger"] = self._logger() if self.subcommand != "predict" else False
        if given.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(StepProgress())
        if given.strategy == SHARDED:
            # Trainers take strings too, so that a class without arguments is left as one.
            kwargs["strategy"] = FSDP2()
        plugins = given.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, DDPStrategy) and not self.model.automatic_optimization:
            # Two networks that take turns: DDP, which "auto" is too, must not wait for gradients of the one whose turn
            # it is not. Only the trainer knows which strategy it came to.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    def before_fit(self) -> None:
        """Claims the folder, before loggers write into it."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfig) and self.trainer.is_global_zero:
                callback.claim()

    def _logger(self) -> RunLogger:
        fit = self.subcommand == "fit"
        return RunLogger(
            str(self.run.folder.parent),
            name=self.run.folder.name,
            # Other verbs measure at step 0, in the eyes of Lightning: theirs are curves of their own.
            version="" if fit else self.subcommand,
            default_hp_metric=False,
            # A killed session wrote past the checkpoint; TensorBoard drops what this one writes again. Lightning counts
            # steps from 0: the first after a checkpoint of n steps is n, and a validation right before it n - 1.
            purge_step=self.start.step if self.start.resumes else None,
        )

    def _settings(self) -> Namespace:
        settings: Namespace = self.config[self.config.subcommand]
        return settings


def run(verb: str, words: Sequence[str]) -> None:
    """Runs a verb of the trainer.

    Args:
        verb: fit, validate, test or predict.
        words: the rest of the command line.

    Raises:
        UsageError: if the words or configs do not parse.
        ValueError: for what is wrong with the values, the data or the run.
    """
    quiet()
    try:
        RunCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=SEED,
            trainer_defaults={**TRAINER_DEFAULTS, "callbacks": [callback() for callback in PLAIN]},
            parser_class=Parser,
            parser_kwargs={
                "prog": "python -m snapgen_pl",
                verb: {"dump_header": [f"snapgen_pl {snapgen_pl.__version__}, lightning {L.__version__}"]},
            },
            args=[verb, *words],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _run(runs: str, name: str) -> Run:
    path = Path(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"--name {name!r}: give a folder below --runs, such as `quickstart`")
    return Run(Path(runs) / path)


def _dump(parser: LightningArgumentParser, settings: Namespace) -> str:
    """The whole configuration, nulls included: a null may stand where the default is something else.

    Raises:
        ValueError: for a value that only its constructor's code can make; config.yaml could not bring it back.
    """
    text: str = parser.dump(settings, skip_unset=False)
    if match := re.search(r"Unable to serialize instance (.+)", text):
        raise ValueError(f"{match[1]} is a default that no YAML can express; write the argument out in the config")
    return text


def _check_end(trainer: Namespace) -> None:
    if trainer.max_steps == -1 and trainer.max_epochs == -1 and trainer.max_time is None and not trainer.fast_dev_run:
        raise ValueError("the run would never end: set trainer.max_steps (optimizer steps) or trainer.max_time")


def _opening(verb: str, run: Run, start: Start) -> str:
    if start.resumes:
        return f"{run.folder}: continuing {start.checkpoint} at step {start.step}"
    if start.checkpoint:
        return f"{run.folder}: {verb} from {start.checkpoint}"
    if verb == "fit":
        return f"{run.folder}: a new run"
    return f"{run.folder}: {verb} without a checkpoint; --run or --ckpt_path takes trained weights"
