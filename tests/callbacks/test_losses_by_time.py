import math
from pathlib import Path

import pytest
import torch

from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl.distill.loss_terms import LossTerms
from tests import distilled_run, pretrain_run
from tests.distilled_run import Observer

STEPS = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_run.draw_images(tmp_path_factory.mktemp("images"))


def mean_by_t(batches: list[LossTerms], term: int, bin_of_ten: int) -> float:
    t_B = torch.cat([batch.t_B for batch in batches])
    value_B = torch.cat([batch.terms[term].value_B for batch in batches])
    return value_B[(t_B >= bin_of_ten / 10) & (t_B < (bin_of_ten + 1) / 10)].mean().item()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_raw_terms_are_logged_by_time_over_all_samples_since_the_last_time(
    images: Path, tmp_path: Path, accumulate: int
) -> None:
    observer = Observer()
    distilled_run.train(images, tmp_path, STEPS, TimestepAwareScaling(), (observer,), accumulate=accumulate)
    scalars = distilled_run.scalars(tmp_path)
    interval = 2 * accumulate
    assert len(observer.terms) == 2 * interval
    for step, batches in ((1, observer.terms[:interval]), (3, observer.terms[interval:])):
        for index, name in enumerate(("task", "kd")):
            tags = {i: f"train_by_t/{name}/{i / 10:.1f}" for i in range(10)}
            logged = {tag: scalars[tag][step] for tag in tags.values() if step in scalars.get(tag, {})}
            # Nothing for a bin without samples, though the step before may have had some there.
            expected = {tag: mean_by_t(batches, index, i) for i, tag in tags.items()}
            assert logged == pytest.approx({tag: value for tag, value in expected.items() if not math.isnan(value)})
