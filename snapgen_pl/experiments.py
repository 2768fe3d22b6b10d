"""Where the published experiments lie, and how a ``--config`` argument finds one."""

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).parent


def experiments_dir() -> Path:
    """The folder of the experiments: inside the package in a wheel, beside it in an editable install.

    Raises:
        ValueError: if the installation has neither.
    """
    for folder in (_PACKAGE / "_experiments", _PACKAGE.parent / "experiments"):
        if folder.is_dir():
            return folder
    raise ValueError("this installation holds no experiments; install snapgen-pl from its wheel or its repository")


def find_config(path: str) -> Path:
    """The file a ``--config`` argument means: in the working directory, else among the experiments.

    Args:
        path: a path, absolute or relative to the working directory; or, where no such file exists, a path relative to
            the experiments, with or without a leading ``experiments/``.

    Raises:
        ValueError: if neither place holds it, naming the closest experiments.
    """
    given = Path(path)
    if given.is_file():
        return given
    if given.is_absolute():
        raise ValueError(f"--config {path}: no such file")
    folder = experiments_dir()
    relative = Path(*given.parts[1:]) if given.parts[:1] == ("experiments",) else given
    if ".." not in relative.parts and (folder / relative).is_file():
        return folder / relative
    known = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))
    close = difflib.get_close_matches(relative.as_posix(), known, n=3)
    hint = f"did you mean experiments/{' or experiments/'.join(close)}?" if close else f"see the YAML files in {folder}"
    raise ValueError(f"--config {path}: no such file here nor among the installed experiments; {hint}")
