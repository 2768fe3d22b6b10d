"""The folder of a run: what lies where, which checkpoint to start from, which settings a resumed run may change.

Rules:
    * ``fit`` starts a run in a folder that holds no checkpoint, from nothing or from any checkpoint elsewhere.
    * ``fit --ckpt_path last``, or a checkpoint inside the folder, continues the run there with the settings it had,
      save for those in :data:`MAY_CHANGE`; whoever wants others continues in a new folder.
    * Each checkpoint holds the configuration too, so that another run's in the folder is not continued as this one.
    * ``config.yaml`` is the run's configuration, written once; each further session adds ``config-<step>.yaml``.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from snapgen_pl import checkpoints
from snapgen_pl.config_files import Difference, Value, differences, load_config, parse_yaml
from snapgen_pl.whole_files import read_json, write_text

CONFIG = "config"  # a checkpoint's key of it, as YAML
PIPELINE = "model_index.json"  # tells a pipeline of diffusers from a run

# Where a session starts and where the folder lies; not compared.
_SESSION = ("ckpt_path", "weights_only", "name", "runs")

# Settings, or groups of them, that may differ between the sessions of a run: they do not change what a step computes.
MAY_CHANGE = (
    # How long it lasts.
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    # The hardware: what a step computes does not depend on how its images are spread.
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accumulate_grad_batches",
    "data.init_args.workers",
    # What it bears.
    "data.init_args.skip_limit",
    # Where it began: what continues has weights of its own.
    "model.init_args.init_from",
    # How often it looks up from its work, and what it shows then.
    "trainer.log_every_n_steps",
    "trainer.val_check_interval",
    "trainer.limit_val_batches",
    "trainer.num_sanity_val_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "trainer.logger",
    "checkpoint",
    "tensorboard",
    "throughput",
)


class Start(NamedTuple):
    """Where a session starts.

    Attributes:
        checkpoint: the file, or None for a fresh start.
        step: the optimizer steps behind that file; 0 for a fresh start.
        resumes: whether the session continues the run of its own folder.
    """

    checkpoint: Path | None = None
    step: int = 0
    resumes: bool = False


class Run(NamedTuple):
    """The paths of one run.

    Attributes:
        folder: the run's folder; may not exist yet.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The run's configuration."""
        return self.folder / "config.yaml"

    @property
    def manifest(self) -> Path:
        """What the run is: code, packages, hardware, data, and every start."""
        return self.folder / "manifest.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint, in whole runs."""
        return self.folder / checkpoints.LAST

    def exists(self) -> bool:
        """Whether something was trained here."""
        return any((self.folder / name).exists() for name in (checkpoints.LAST, checkpoints.PREVIOUS))

    def claim(self) -> FileLock:
        """Keeps other processes from training in the folder for as long as this one lives.

        Raises:
            ValueError: if another does already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another process is at work in {self.folder}; wait for it, or choose another --name"
            ) from error
        return lock

    def check_writable(self) -> None:
        """Refuses a folder that nothing can be written in, before any work is done for it.

        Raises:
            ValueError: naming it, or that in which it would have to be made.
        """
        folder = self.folder.absolute()
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            reason = "it may not be written" if place.is_dir() else "it is a file"
            raise ValueError(f"{self.folder} cannot hold a run: of {place}, {reason}; choose another --runs")

    def starts(self) -> list[dict[str, Any]]:
        """What the manifest says of each session, the first one first; at least one.

        Raises:
            ValueError: where it is missing or damaged.
        """
        starts = read_json(self.manifest, "put it back").get("starts")
        if not isinstance(starts, list) or not starts or not all(isinstance(start, dict) for start in starts):
            raise ValueError(f"{self.manifest} does not say how the run was started; put it back")
        return starts

    def session_config(self, start: Start) -> Path:
        """The file that a session's configuration goes to."""
        return self.folder / f"config-{start.step}.yaml" if start.resumes else self.config

    def write_config(self, text: str, start: Start) -> None:
        """Writes a session's configuration, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(text, self.session_config(start))

    def start(self, ckpt_path: str | None) -> Start:
        """Decides where a session of ``fit`` starts.

        Args:
            ckpt_path: ``last``, a file, or None.

        Raises:
            ValueError: if the folder holds another run or cannot be written, or the checkpoint is damaged.
            FileNotFoundError: if the checkpoint is missing.
        """
        self.check_writable()
        try:
            checkpoint = self.checkpoint(ckpt_path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; leave --ckpt_path out to start a run") from error
        resumes = checkpoint is not None and checkpoint.resolve().parent == self.folder.resolve()
        if self.exists() and not resumes:
            raise ValueError(
                f"run {self.folder} exists ({self._progress()}); continue it with --ckpt_path last "
                "or choose another --name"
            )
        return Start(checkpoint, checkpoints.step_of(checkpoint) if checkpoint else 0, resumes)

    def checkpoint(self, ckpt_path: str | None) -> Path | None:
        """The file a ``--ckpt_path`` means: ``last`` is the run's newest.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it is not a whole checkpoint.
        """
        if ckpt_path is None:
            return None
        if ckpt_path == "last":
            return checkpoints.newest(self.folder)
        checkpoints.require_whole(Path(ckpt_path))
        return Path(ckpt_path)

    def _progress(self) -> str:
        try:
            return f"step {checkpoints.step_of(checkpoints.newest(self.folder))}"
        except ValueError:
            return "its newest checkpoint is damaged"

    def check_unchanged(self, config: Value) -> list[Difference]:
        """Compares the configuration of a resumed session with the run's.

        Returns:
            What differs and may.

        Raises:
            ValueError: listing what differs and may not.
        """
        if not self.config.is_file():
            raise ValueError(f"{self.config} is missing, so nothing says how the run was configured; put it back")
        found = [change for change in differences(load_config(self.config), config) if change.key not in _SESSION]
        if refused := _refused(found):
            raise ValueError(
                f"the configuration is not that of run {self.folder}:\n{table(refused)}\n"
                f"undo the change, or continue elsewhere with --name NEW --ckpt_path {self.last}"
            )
        return found

    def check_own(self, checkpoint: Path) -> None:
        """Refuses a checkpoint that was put into the folder from another run, or a configuration that was.

        Raises:
            ValueError: listing how the configuration in the checkpoint differs from the folder's; where it has none.
        """
        text = checkpoints.read(checkpoint, verify=False).get(CONFIG)
        if not isinstance(text, str):
            raise ValueError(f"{checkpoint} does not say how it was configured; put back the one that `fit` saved")
        own = differences(load_config(self.config), parse_yaml(text))
        if refused := _refused([change for change in own if change.key not in _SESSION]):
            raise ValueError(
                f"{checkpoint} is not of the run that {self.config} tells of:\n{table(refused)}\n"
                "put the run's own files back, or continue the checkpoint elsewhere with --name NEW"
            )


def find_run(path: str) -> Run:
    """The run in a folder.

    Raises:
        ValueError: where there is none.
    """
    run = Run(Path(path))
    if (run.folder / PIPELINE).is_file():
        raise ValueError(f"{path} is a pipeline of diffusers, which `generate` and `model.init_from` take; give the "
                         "folder of the run that it was made of, runs/NAME")  # fmt: skip
    if not run.config.is_file():
        raise ValueError(f"{path}: no run there ({run.config} does not exist); give its folder, runs/NAME")
    return run


def _refused(found: Sequence[Difference]) -> list[Difference]:
    return [difference for difference in found if not may_change(difference.key)]


def may_change(key: str) -> bool:
    """Whether a setting, or the group it is in, may differ between sessions of one run."""
    return any(key == prefix or key.startswith(prefix + ".") for prefix in MAY_CHANGE)


def table(rows: Sequence[Difference]) -> str:
    """Differences as aligned lines ``key: old -> new``."""
    width = max(len(row.key) for row in rows) + 1
    return "\n".join(f"  {row.key + ':':<{width}} {row.old} -> {row.new}" for row in rows)
