"""What the Neural Engine takes, and what it takes without waste: what the lowering keeps to, and the rules check.

Sources: Apple's Neural Engine rules (apple/coreai-models, ``neural_engine_rules.md``), "Deploying Transformers on the
Apple Neural Engine" (2022) and ml-stable-diffusion; sides and weights from reports of the community.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

MAX_RANK = 5
MAX_SIDE = 16_384  # of height, width and depth
MAX_CHANNELS = 65_536  # and of the batch
ROW_BYTES = 64  # what rows of the last axis are padded to
MIN_LAST_AXIS = 32  # numbers of float16 in these
LEAST_HALF = 2.0**-14  # the smallest normal number of float16; smaller ones may be taken for 0
MOST_HALF = 4e4  # what masks have for infinity: softmax does not get along with the real one
MAX_WEIGHTS = 1_000_000_000  # bytes of a package
DOUBTED_WEIGHTS = 667_000_000  # bytes of one that the compiler was reported to fail on


def to_half(array: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Numbers in float16, the largest clipped; those under the least normal one become that or 0, whichever is nearer.

    There is no telling who flushes such small numbers.
    """
    array = np.clip(array, np.finfo(np.float16).min, np.finfo(np.float16).max)
    return np.where(np.abs(array) < LEAST_HALF, np.rint(array / LEAST_HALF) * LEAST_HALF, array).astype(np.float16)
