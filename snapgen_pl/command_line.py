"""``--config`` and ``--run``: what stands for more than itself on the command line of the trainer's verbs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.config_files import check_config, locate
from snapgen_pl.errors import UsageError
from snapgen_pl.experiments import find_config
from snapgen_pl.runs import find_run

_CONFIG = ("--config", "-c")
_RUN = ("--run",)
# Where a run was trained says nothing of where it is looked at: without these, `test` would wait for a second node.
_ANYWHERE = ("--trainer.num_nodes", "1", "--trainer.devices", "auto", "--trainer.strategy", "auto")


class Command(NamedTuple):
    """A command line that the trainer's parser understands.

    Attributes:
        words: its words, without the verb.
        configs: the config files among them, found and checked.
    """

    words: list[str]
    configs: list[Path]

    def located(self, error: UsageError) -> UsageError:
        """The error with the file and line that gives its key; unchanged where a flag gives it or nothing does."""
        flagged = any(_unwrapped(word.split("=")[0]) == f"--{error.key}" for word in self.words)
        if not error.key or flagged:
            return error
        for config in reversed(self.configs):
            if line := locate(config, error.key, error.value):
                return UsageError(f"{error} ({config}:{line})", error.key, error.value)
        return error


def expand(verb: str, words: Sequence[str]) -> Command:
    """Finds the files of ``--config``, and replaces ``--run FOLDER`` by the run's configuration and newest checkpoint.

    Further words override what ``--run`` stands for.

    Args:
        verb: to ``fit``, a run is its processes too.
        words: what follows it.

    Raises:
        UsageError: if a file is missing, is broken YAML or gives a key twice; if a folder is no run.
    """
    front: list[str] = []
    back: list[str] = []
    configs: list[Path] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name not in _CONFIG + _RUN:
            back.append(word)
            continue
        value = value if equals else next(remaining, "")
        if not value:
            raise UsageError(f"{name} needs a value: {'a run folder' if name in _RUN else 'a YAML file'}")
        try:
            config = find_config(value) if name in _CONFIG else _run_config(value)
            check_config(config)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if name in _RUN:
            folder = config.parent
            front = ["--config", str(config), "--runs", str(folder.parent), "--name", folder.name]
            front += ["--ckpt_path", "last", *(_ANYWHERE if verb != "fit" else ())]
            configs.insert(0, config)
        else:
            back += ["--config", str(config)]
            configs.append(config)
    return Command(front + back, configs)


def _run_config(folder: str) -> Path:
    path = Path(folder)
    # A name is needed, and `.` has none.
    try:
        return find_run(folder if path.name not in ("", "..") else str(path.resolve())).config
    except ValueError as error:
        raise ValueError(f"--run {error}") from error


def _unwrapped(flag: str) -> str:
    return flag.replace(".init_args", "")
