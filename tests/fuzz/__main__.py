"""Damages files as the coverage of their readers leads: ``python -m tests.fuzz --target tar_samples --runs 100000``.

Needs Linux, and the extra ``fuzz``: atheris, for Python 3.11 to 3.13. Without a target, all come one after the
other. What a reader neither reads nor refuses ends the run; its bytes go to ``tests/fuzz/cases``, which
``tests/test_fuzz.py`` tries each time.
"""

import contextlib
import hashlib
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import atheris
from hypothesis import given
from jsonargparse import auto_cli

with atheris.instrument_imports(include=["snapgen_pl"]):
    from tests.damage import damaged_file
    from tests.fuzz.target import CASES, Damaged, cases
    from tests.fuzz.targets import TARGETS

MEMORY = 4 << 30  # bytes that a reader may ask for, beyond what its libraries took


def main(target: str | None = None, runs: int = 100_000, seconds: int = 300) -> None:
    """Fuzzes one file, or all.

    Args:
        target: which of ``tests.fuzz.targets``.
        runs: contents to be tried, of each.
        seconds: after which each ends all the same.
    """
    if target not in (None, *TARGETS):
        raise ValueError(f"no target {target!r} among {', '.join(TARGETS)}")
    for name in TARGETS if target is None else [target]:
        with tempfile.TemporaryDirectory() as folder:
            # libFuzzer ends the process that it is in.
            process = get_context("fork").Process(target=fuzz, args=(name, Path(folder), runs, seconds))
            process.start()
            process.join()
        if process.exitcode:
            sys.exit(f"something was found of {name}: see {CASES / name}, or what libFuzzer says")


def fuzz(name: str, folder: Path, runs: int, seconds: int) -> None:
    """Does not return.

    Args:
        name: the target's.
        folder: empty.
        runs: as in main.
        seconds: as in main.
    """
    files, corpus, found = folder / "files", folder / "corpus", CASES / name
    for each in (files, corpus, found):
        each.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=["snapgen_pl"]):  # what is imported late
        damaged = Damaged(TARGETS[name], files)
    one_input: Callable[[bytes], object] = keeping(damaged.check, found)
    seeds = [damaged.whole, *(case.read_bytes() for case in cases(name))]
    artifacts = found
    if damaged.path.suffix == ".json":
        # Of bytes few are JSON: libFuzzer's become hypothesis' choices, and these the content.
        one_input, artifacts = as_choices(one_input, damaged), folder
        seeds = [random.Random(number).randbytes(1024) for number in range(16)]
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)
    options = {"runs": runs, "max_total_time": seconds, "len_control": 0, "timeout": 60, "rss_limit_mb": 0}
    words = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup(["fuzz", *words, f"-artifact_prefix={artifacts}/", str(corpus)], one_input)
    print(f"{name}:", flush=True)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        atheris.Fuzz()


def keeping(check: Callable[[bytes], None], found: Path) -> Callable[[bytes], object]:
    """Keeps the content that something is found in; libFuzzer itself keeps what takes too long, or kills."""

    def kept(content: bytes) -> None:
        try:
            check(content)
        except Exception:
            (found / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)
            raise

    return kept


def as_choices(check: Callable[[bytes], object], damaged: Damaged) -> Callable[[bytes], object]:
    """A check of contents as hypothesis draws them from bytes."""

    @given(damaged_file(damaged.target.file, damaged.whole))
    def drawn(content: bytes) -> None:
        check(content)

    one_input: Callable[[bytes], object] = drawn.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    return one_input


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
