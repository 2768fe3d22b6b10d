"""GenEval's detector: Mask2Former on COCO's classes (Cheng et al., 2022), here in transformers' port."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.images import check_uint8
from snapgen_pl.metrics.geneval.rules import LEAST_SCORE, Detection
from snapgen_pl.metrics.judge_network import IMAGENET, judge_network, judging

SIDE = 800  # that images are resized to
_MOST = 100  # detections of an image
# What GenEval's prompts call COCO's classes; transformers' ports of 80 classes call six as Pascal VOC does.
_RENAMED = {
    "mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard",
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch",
    "pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip


class Detector:
    """Finds objects in square images.

    Args:
        path: the network's folder, or its name on the Hugging Face hub: facebook/mask2former-swin-small-coco-instance.

    Attributes:
        digest: SHA-256 over its configuration and weights.
        names: of its classes, as GenEval's prompts have them.

    Raises:
        ValueError: if files are missing or damaged, or are another network's.
    """

    def __init__(self, path: str) -> None:
        network, self.digest = judge_network(path, "Mask2FormerForUniversalSegmentation", "mask2former")
        self._network: Any = network
        labels = network.config.id2label or {}
        self.names = tuple(_RENAMED.get(name, name) for _, name in sorted(labels.items()))

    def to(self, device: torch.device) -> None:
        """Moves it."""
        self._network.to(device)

    def __call__(self, image_BCHW: Tensor) -> list[list[Detection]]:
        """The objects in each image.

        Args:
            image_BCHW: uint8 (B, 3, H, H).

        Raises:
            ValueError: for images that are not square.
        """
        check_uint8(image_BCHW)
        height, width = image_BCHW.shape[-2:]
        if height != width:
            raise ValueError(f"images of {height} x {width} pixels are not square; the detector is fed squares here")
        found = []
        with judging(self._network.device):
            for image_CHW in image_BCHW.to(self._network.device):  # one by one: masks at full size take the memory
                small_BCHW = F.interpolate(image_CHW[None].float(), size=(SIDE, SIDE), mode="bilinear")
                output = self._network(pixel_values=IMAGENET(small_BCHW))
                masks_QHW = F.interpolate(output.masks_queries_logits, size=(SIDE, SIDE), mode="bilinear")[0]
                found.append(detections(output.class_queries_logits[0], masks_QHW, self.names, height))
        return found


def detections(class_QC: Tensor, mask_QHW: Tensor, names: Sequence[str], side: int) -> list[Detection]:
    """What a Mask2Former's queries found, by mmdetection's rule, which GenEval's thresholds are for.

    A query may be of several classes. A detection's score is its class's probability times the mean probability of its
    mask, where that is over 1/2. What cannot come over GenEval's least score is left out before it is drawn large.

    Args:
        class_QC: logits of each query's class, the last one being none.
        mask_QHW: logits of its mask.
        names: of the classes.
        side: of the image, in pixels.
    """
    probability_QC = class_QC.softmax(dim=-1)[:, :-1]
    score_N, place_N = probability_QC.flatten().topk(min(_MOST, probability_QC.numel()))
    found = []
    for score, place in zip(score_N.tolist(), place_N.tolist(), strict=True):
        if score <= LEAST_SCORE:
            break
        query, label = divmod(place, len(names))
        logits_HW = F.interpolate(mask_QHW[None, None, query], size=(side, side), mode="bilinear")[0, 0]
        mask_HW = logits_HW > 0
        rows, columns = mask_HW.any(dim=1).nonzero(), mask_HW.any(dim=0).nonzero()
        if not len(rows):
            continue
        sure = float(logits_HW[mask_HW].sigmoid().mean())
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        found.append(Detection(names[label], score * sure, box, mask_HW))
    return found
