"""``python -m snapgen_pl VERB ...``: finds the verb, and turns what goes wrong in it into one readable paragraph.

Exit status: 0 done, 1 refused or failed with a reason, 2 a command or configuration that cannot be parsed.
Set SNAPGEN_DEBUG=1 for tracebacks.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from snapgen_pl.errors import ShortErrors, UsageError, debugging, did_you_mean, is_told, reason

PROG = "python -m snapgen_pl"


class Verb(NamedTuple):
    """A verb made of a function: its signature is the command line, the text it returns is printed.

    Attributes:
        target: ``module:function``, imported when the verb is used.
        summary: a line of help.
        positional: whether the function's required arguments are given by place instead of by ``--name``.
    """

    target: str
    summary: str
    positional: bool = False


TRAINER_VERBS = {
    "fit": "train; needs --config, continues a run with --run",
    "validate": "measure the validation losses of a run",
    "test": "draw from a run and report FID, KID and the like, with the protocol",
    "predict": "draw what the data's predict loader asks for",
}

FUNCTION_VERBS = {
    "generate": Verb("snapgen_pl.generate:generate", "draw images of classes or prompts from a run, as PNG files"),
    "export": Verb("snapgen_pl.export.verbs:export", "write a run's networks as ONNX files and Core ML packages"),
    "export bundle": Verb("snapgen_pl.export.bundle:bundle", "put exported packages together for a Mac and for apps"),
    "export diffusers": Verb(
        "snapgen_pl.pipeline.export:export", "write a run as a pipeline of diffusers, with a card"
    ),
    "export verify": Verb("snapgen_pl.export.verbs:verify", "evaluate a Core ML package and check it", positional=True),
    "report": Verb("snapgen_pl.metrics.stored_images:report", "measure drawn images on disk: FID and its like"),
    "reference": Verb("snapgen_pl.metrics.stored_images:reference", "make the reference that reports compare with"),
    "table": Verb("snapgen_pl.tables.table:table", "print a table of published results", positional=True),
    "table memory": Verb("snapgen_pl.tables.memory:memory", "print what a training configuration needs of each GPU"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the words after the program's name; by default the process's.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    verb, *rest = words
    try:
        if verb in TRAINER_VERBS:
            return _run_trainer(verb, rest)
        if rest and f"{verb} {rest[0]}" in FUNCTION_VERBS:
            verb, *rest = f"{verb} {rest[0]}", *rest[1:]
        if verb in FUNCTION_VERBS:
            _run_function(verb, FUNCTION_VERBS[verb], rest)
            return 0
        raise UsageError(f"no such verb{did_you_mean(verb, [*TRAINER_VERBS, *FUNCTION_VERBS])}")
    except Exception as error:
        if debugging() or not is_told(error):
            raise
        return _fail(verb, error)


def _run_trainer(verb: str, rest: list[str]) -> int:
    # Before Lightning is imported, which takes seconds: what is wrong with the files is said at once.
    from snapgen_pl.command_line import expand

    command = expand(verb, rest)
    from snapgen_pl import cli

    try:
        cli.run(verb, command.words)
    except UsageError as error:
        raise command.located(error) from error
    return 0


def _run_function(name: str, verb: Verb, rest: list[str]) -> None:
    module, _, attribute = verb.target.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    parser = ShortErrors(prog=f"{PROG} {name}", description=verb.summary, allow_abbrev=False)
    parser.add_function_arguments(function, as_positional=verb.positional)
    settings = parser.instantiate(parser.parse_args([_appending(word) for word in rest]))
    text = function(**settings.as_dict())
    if text is not None:
        print(text)


def _appending(word: str) -> str:
    """``--config`` comes several times, as it does for the trainer's verbs, and each adds a file to a list."""
    flag, equals, value = word.partition("=")
    return f"--config+{equals}{value}" if flag == "--config" else word


def _fail(verb: str, error: Exception) -> int:
    usage = isinstance(error, UsageError)
    where = f"{error.key}: " if isinstance(error, UsageError) and error.key else ""
    message = str(error) if usage else reason(error)
    hint = "" if usage else "\n(SNAPGEN_DEBUG=1 shows where)"
    print(f"{PROG} {verb}: error: {where}{message}{hint}", file=sys.stderr)
    return 2 if usage else 1


def _help() -> str:
    summaries = TRAINER_VERBS | {name: verb.summary for name, verb in FUNCTION_VERBS.items()}
    verbs = "\n".join(f"  {name:<16} {summary}" for name, summary in summaries.items())
    return f"""usage: {PROG} VERB ...

{verbs}

  {PROG} fit --config experiments/quickstart.yaml
  {PROG} fit --run runs/quickstart --trainer.max_steps 4000     continue it
  {PROG} validate --run runs/quickstart

A --config is looked up in the working directory, else among the installed experiments; several merge, later ones win.
{PROG} VERB --help lists what a verb takes; fit --print_config prints the whole configuration."""


if __name__ == "__main__":
    sys.exit(main())
