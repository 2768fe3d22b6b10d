"""What made a number: the code and the machine."""

import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

import snapgen_pl


class Code(NamedTuple):
    """A state of the code.

    Attributes:
        version: the package's.
        commit: of the git checkout; None where there is none.
        dirty: whether files differ from it.
    """

    version: str
    commit: str | None
    dirty: bool | None


class Machine(NamedTuple):
    """A machine as one process sees it.

    Attributes:
        cpu: the processor's name.
        cores: logical ones.
        threads: torch's.
        gpus: their names, separated by commas.
        cuda: torch's version of it.
        platform: the system.
    """

    cpu: str
    cores: int | None
    threads: int
    gpus: str
    cuda: str | None
    platform: str


def describe_code() -> Code:
    """The code that runs."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return Code(snapgen_pl.__version__, commit, None if changes is None else bool(changes))


def _git(*arguments: str) -> str | None:
    """What git says of the package's folder; None where that is no checkout or there is no git."""
    folder = Path(snapgen_pl.__file__).parent
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_machine() -> Machine:
    """The machine that it runs on."""
    return Machine(
        _cpu_name(),
        os.cpu_count(),
        torch.get_num_threads(),
        ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        torch.version.cuda,
        platform.platform(),
    )


def _cpu_name() -> str:
    """The processor's name; Linux tells it in /proc only."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
