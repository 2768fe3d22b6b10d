"""GenEval: whether the objects that prompts ask for are there, as many, as coloured and where (Ghosh et al., 2023)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from snapgen_pl.digest import values_digest
from snapgen_pl.metrics.clip import CLIP
from snapgen_pl.metrics.geneval.colours import Colours
from snapgen_pl.metrics.geneval.detector import SIDE, Detector
from snapgen_pl.metrics.geneval.rules import RULES, TASKS, Spec, kept, read_specs, shows
from snapgen_pl.metrics.judge_network import require_file
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, RequestMetric, Score, all_numbered, prepared

FULL_PROMPTS, IMAGES_A_PROMPT = 553, 4


class _Judges(NamedTuple):
    detector: Detector
    colours: Colours


class GenEval(RequestMetric):
    """``geneval``, the mean over six tasks, and each task's share of right images, ``geneval_<task>``.

    Of anything but all 553 prompts and four images of each, names end in ``@N``. Prompts, rules, thresholds and CLIP
    ViT-L/14 for colours are the published ones, and so is the detector's architecture, Mask2Former with Swin-S on COCO.
    Here it is transformers' port, where GenEval's is mmdetection's, trained by other hands: values lie near published
    ones, and do not compare with them to the last digit.

    Args:
        prompts: GenEval's evaluation_metadata.jsonl, as it is drawn from.
        detector: Mask2Former's folder, or its name on the Hugging Face hub, such as
            facebook/mask2former-swin-small-coco-instance.
        clip: CLIP's, such as openai/clip-vit-large-patch14.
    """

    def __init__(self, prompts: Path, detector: str, clip: str) -> None:
        self.prompts, self.detector, self.clip = prompts, detector, clip
        self._specs: dict[str, Spec] = {}
        self._judges: _Judges | None = None

    @property
    def network(self) -> str:
        """See the class."""
        return "geneval"

    def protocol(self) -> Facts:
        """Prompts, rules and both judges."""
        detector, colours = prepared(self._judges, self.network)
        return {
            "prompts": values_digest({"specs": [asdict(spec) for spec in self._specs.values()]}),
            "prompt_count": len(self._specs),
            "detector": "transformers' Mask2Former; the published one is mmdetection's",
            "detector_weights": detector.digest,
            "detector_side": SIDE,
            "clip_weights": colours.clip.digest,
            **RULES,
        }

    def prepare(self, device: torch.device) -> None:
        """Reads the prompts and loads the networks; a second call only moves these.

        Raises:
            ValueError: if a file is missing or none of GenEval's, or the detector does not know a class of it.
        """
        if self._judges is None:
            require_file(self.prompts, "evaluation_metadata.jsonl of github.com/djghosh13/geneval")
            self._specs = _by_prompt(read_specs(self.prompts))
            judges = _Judges(Detector(self.detector), Colours(CLIP(self.clip)))
            asked = set().union(*(spec.names for spec in self._specs.values()))
            if unknown := sorted(asked - set(judges.detector.names)):
                raise ValueError(
                    f"{self.detector} does not know {len(unknown)} of the prompts' classes, such as {unknown[0]!r}; "
                    "give a network that was trained on COCO's instances"
                )
            self._judges = judges
        self._judges.detector.to(device)
        self._judges.colours.clip.to(device)

    def check_requests(self, asked: Sequence[str]) -> None:
        """Raises ValueError, naming a prompt that is not of the file."""
        if unknown := next((prompt for prompt in asked if prompt not in self._specs), None):
            raise ValueError(
                f"{unknown!r} is no prompt of {self.prompts}; draw from this very file: set data.prompts to it, "
                "data.layout to geneval and labels to prompts"
            )

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """Each image's task, by its place among them, and whether it is right, (B, 2)."""
        detector, colours = prepared(self._judges, self.network)
        rows = []
        for image_CHW, prompt, found in zip(image_BCHW, asked, detector(image_BCHW), strict=True):
            spec = self._specs[prompt]
            right = shows(
                spec,
                kept(found, spec.task),
                lambda name, objects, image_CHW=image_CHW: colours(image_CHW, name, objects),  # type: ignore[misc]
            )
            rows.append([float(TASKS.index(spec.task)), float(right)])
        return {self.network: torch.tensor(rows)}

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """See the class."""
        task_N, right_N = torch.cat(list(features.read(self.network))).double().unbind(dim=-1)
        shares = {
            task: float(right_N[task_N == place].mean()) for place, task in enumerate(TASKS) if (task_N == place).any()
        }
        scores = {"geneval": Score(sum(shares.values()) / len(shares))}
        scores |= {f"geneval_{task}": Score(share) for task, share in shares.items()}
        if len(self._specs) == FULL_PROMPTS and features.count == FULL_PROMPTS * IMAGES_A_PROMPT:
            return scores
        return all_numbered(scores, features.count)


def _by_prompt(specs: Sequence[Spec]) -> dict[str, Spec]:
    """By what images are asked for with.

    Raises:
        ValueError: where one text asks for two things.
    """
    found: dict[str, Spec] = {}
    for spec in specs:
        if found.setdefault(spec.prompt, spec) != spec:
            raise ValueError(f"{spec.prompt!r} stands for two things in GenEval's file; download it again")
    return found
