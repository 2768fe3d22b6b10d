"""DPG-Bench: whether images hold all that long prompts say, by questions about them (Hu et al., ELLA, 2024)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from snapgen_pl.digest import values_digest
from snapgen_pl.metrics.dpg.answers import Answers
from snapgen_pl.metrics.dpg.questions import Question, read_questions, score, unspaced
from snapgen_pl.metrics.judge_network import require_file
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, RequestMetric, Score, all_numbered, prepared

IMAGES_A_PROMPT = 4


class DPGBench(RequestMetric):
    """``dpg_blip``, the mean over images of the share of questions that hold, in percent; and ``dpg_blip_<category>``.

    Of anything but four images of each prompt of the file, names end in ``@N``. A question holds if its answer is yes
    and those that it depends on hold; categories are of answers as they are.

    The published judge is mPLUG-large of modelscope; here BLIP answers, so values do not compare with published ones.
    Otherwise than the authors' script, the file's first question counts, and categories are of all images of a prompt,
    not of the last.

    Args:
        questions: DPG-Bench's dpg_bench.csv.
        judge: BLIP's folder, or its name on the Hugging Face hub, such as Salesforce/blip-vqa-base.
    """

    def __init__(self, questions: Path, judge: str) -> None:
        self.questions, self.judge = questions, judge
        self._of_prompt: dict[str, tuple[Question, ...]] = {}
        self._categories: list[str] = []
        self._answers: Answers | None = None

    @property
    def network(self) -> str:
        """See the class."""
        return "dpg_blip"

    def protocol(self) -> Facts:
        """Questions and judge."""
        return {
            "questions": values_digest({"questions": self._of_prompt}),
            "prompt_count": len(self._of_prompt),
            "judge": "BLIP; the published one is mPLUG-large",
            "judge_weights": prepared(self._answers, self.network).digest,
        }

    def prepare(self, device: torch.device) -> None:
        """Reads the questions and loads the judge; a second call only moves it.

        Raises:
            ValueError: if a file is missing, or none of DPG-Bench's.
        """
        if self._answers is None:
            require_file(self.questions, "dpg_bench.csv of github.com/TencentQQGYLab/ELLA")
            self._of_prompt = read_questions(self.questions)
            asked = {question.category for each in self._of_prompt.values() for question in each}
            self._categories = sorted(asked)
            self._answers = Answers(self.judge)
        self._answers.to(device)

    def check_requests(self, asked: Sequence[str]) -> None:
        """Raises ValueError, naming a prompt that there are no questions about."""
        if unknown := next((prompt for prompt in asked if unspaced(prompt) not in self._of_prompt), None):
            raise ValueError(
                f"{self.questions} asks nothing about {unknown[:60]!r}; draw from DPG-Bench's own prompts: set "
                "data.prompts to their folder, data.layout to dpg and labels to prompts"
            )

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """Each image's share of questions that hold, then of each category its answers by yes, and all, (B, 1 + 2K)."""
        answers = prepared(self._answers, self.network)
        rows = []
        for image_CHW, prompt in zip(image_BCHW, asked, strict=True):
            questions = self._of_prompt[unspaced(prompt)]
            said = answers(image_CHW, [question.text for question in questions])
            yes = [answer == "yes" for answer in said]
            row = [score(questions, yes)]
            for category in self._categories:
                own = [answer for question, answer in zip(questions, yes, strict=True) if question.category == category]
                row += [float(sum(own)), float(len(own))]
            rows.append(row)
        return {self.network: torch.tensor(rows)}

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """See the class."""
        row_NF = torch.cat(list(features.read(self.network))).double()
        share_N, (yes_K, all_K) = row_NF[:, 0], row_NF[:, 1:].sum(dim=0).view(-1, 2).unbind(dim=-1)
        scores = {self.network: Score(float(100 * share_N.mean()))}
        for category, yes, count in zip(self._categories, yes_K.tolist(), all_K.tolist(), strict=True):
            if count:
                scores[f"{self.network}_{category}"] = Score(100 * yes / count)
        if features.count == IMAGES_A_PROMPT * len(self._of_prompt):
            return scores
        return all_numbered(scores, features.count)
