"""What a user need not read: notices and warnings of libraries that ask for nothing. Errors always pass."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Each pattern matches the beginning of a warning.
_NOISE = (
    # Decoding small images in the main process is the default on purpose: data.workers is there for those who need it.
    r"The '\w+' does not have many workers",
    # Torch's own deprecation, met inside Lightning on a run's first batch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
_NOTICES = (
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "💡 Tip:",
    # The config holds the seed, and the first line of a session its checkpoint.
    "Seed set to",
    "Restoring states from",
    "Restored all states from",
    "Loaded model weights from",
)


_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)


class _Notices(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Drops what Lightning says of hardware, and what the config or the session's first line says already."""
        return not record.getMessage().lstrip().startswith(_NOTICES)


def quiet() -> None:
    """Filters the noise of this process and of the workers it starts."""
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Notices) for known in logger.filters):
            logger.addFilter(_Notices())
    # TensorFlow, where tensorboard finds one installed, greets in C++.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextmanager
def errors_alone(*names: str) -> Iterator[None]:
    """Loggers of these names tell nothing but errors inside the ``with``, and what they told before afterwards."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
