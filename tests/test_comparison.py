"""Runs of one table stand side by side in TensorBoard: the same tags, at the same steps, on the same noise."""

from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from benchmarks.emoji_table import plot, trained
from benchmarks.rows import RECIPE, begin_again
from snapgen_pl.__main__ import main
from snapgen_pl.checkpoints import PREVIOUS
from snapgen_pl.runs import Run
from snapgen_pl.tables.emoji import FILES, emoji
from snapgen_pl.tables.records import read_records, recipe
from tests import sample_run
from tests.test_experiments import SMALL, SMALL_STAGES, flags

SIZES = {
    "8_reference": {"model.denoiser.stages": SMALL_STAGES, "model.denoiser.head_dim": "32"},
    "uvit_h": {
        "model.denoiser.hidden": "32",
        "model.denoiser.depth": "1",
        "model.denoiser.heads": "4",
        "model.denoiser.latent_size": "16",
        "model.denoiser.context_dim": "32",
        "model.conditioner.context_dim": "32",
    },
}
QUICK = {
    "data.source": "snapgen_pl.data.image_folder.ImageFolder",
    "data.image_size": "32",
    "model.image_size": "32",
    "model.sampler.steps": "2",
    "trainer.max_steps": "2",
    "trainer.val_check_interval": "1",
    "trainer.log_every_n_steps": "1",
    "trainer.enable_progress_bar": "false",
    "checkpoint.every_n_steps": "1",
}
CALLBACKS = """\
trainer:
  callbacks:
    - class_path: callbacks.sample_grid.SampleGrid
      init_args: {rows: 2, columns: 2, every_n_images: 8}
    - class_path: callbacks.sample_metrics.SampleMetrics
      init_args:
        metrics: [{class_path: snapgen_pl.metrics.effnet_distances.EffNetDistances, init_args: {subset_size: 10}}]
        samples: 12
        control_images: 12
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, trained in small."""
    folder = tmp_path_factory.mktemp("table")
    images = sample_run.image_folder(folder / "images")
    (folder / "callbacks.yaml").write_text(CALLBACKS)
    for row, sizes in SIZES.items():
        configs = [SMALL / "base.yaml", SMALL / f"{row}.yaml", folder / "callbacks.yaml"]
        settings = (
            QUICK | sizes | {"data.source.root": str(images), "runs": str(folder), "name": f"emoji-table/{row}-seed0"}
        )
        assert main(["fit", *(word for file in configs for word in ("--config", str(file))), *flags(settings)]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, EventAccumulator]:
    return {row: EventAccumulator(str(folder / "emoji-table" / f"{row}-seed0")).Reload() for row in SIZES}


def test_rows_write_the_same_tags_at_the_same_steps(runs: dict[str, EventAccumulator]) -> None:
    reference, peer = runs.values()
    scalars = reference.Tags()["scalars"]
    assert set(scalars) == set(peer.Tags()["scalars"])
    assert {
        "train/loss",
        "train/seconds",
        "train/images_per_second",
        "val/loss",
        "kid_effnet",
        "kid_effnet/8px",
    } <= set(scalars)
    for tag in scalars:
        assert [event.step for event in reference.Scalars(tag)] == [event.step for event in peer.Scalars(tag)], tag
    sheets = [[image.step for image in events.Images("samples")] for events in (reference, peer)]
    assert sheets[0] == sheets[1] != []


def test_every_tag_of_the_charts_is_written(runs: dict[str, EventAccumulator]) -> None:
    import re

    for events in runs.values():
        layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
        charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
        assert set(charts) == {"loss", "loss by time", "kid_effnet", "speed"}
        scalars = events.Tags()["scalars"]
        for title, tags in charts.items():
            for tag in tags:
                assert any(re.match(tag, written) for written in scalars), (title, tag)


def test_rows_are_ranked_by_the_metrics_and_told_apart_by_what_differs(runs: dict[str, EventAccumulator]) -> None:
    told: list[dict[str, object]] = []
    for events in runs.values():
        plugins = events.PluginTagToContent("hparams")
        experiment = HParamsPluginData.FromString(plugins["_hparams_/experiment"]).experiment
        assert [metric.name.tag for metric in experiment.metric_infos] == ["val/loss", "kid_effnet"]
        session = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"]).session_start_info
        told.append({name: MessageToDict(value) for name, value in session.hparams.items()})
    assert told[0]["model.denoiser.class_path"] != told[1]["model.denoiser.class_path"]
    for shared in ("model.sampler.steps", "data.batch_size", "seed_everything", "model.seed"):
        assert told[0][shared] == told[1][shared]


def test_a_row_is_recorded_and_drawn_as_it_ended(
    folder: Path, runs: dict[str, EventAccumulator], tmp_path: Path
) -> None:
    for row, events in runs.items():
        with pytest.raises(ValueError, match=r"was not begun by what .* declare now"):
            trained(row, 0, folder).record()
        (trained(row, 0, folder).folder / RECIPE).write_text(recipe(FILES[row]))
        found = trained(row, 0, folder).record()
        assert found.validation == {"loss": events.Scalars("val/loss")[-1].value}
        assert list(found.by_time) == ["loss"]
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val_loss_by_t/")]
        assert found.by_time["loss"] == {tag.split("/")[1]: events.Scalars(tag)[-1].value for tag in tags}
        assert found.report.values["kid_effnet"].value == pytest.approx(events.Scalars("kid_effnet")[-1].value)
        assert found.training_seconds > 0
        found.write(tmp_path / "records")
    rows = {row.row: row for row in emoji(read_records(tmp_path / "records", FILES), {})}
    assert rows["U-ViT-H"].seeds == 1
    plot(list(rows.values()), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1000


def test_a_run_that_was_cut_off_at_its_end_goes_on_before_it(folder: Path) -> None:
    run = Run(folder / "emoji-table" / "8_reference-seed0")
    assert begin_again(run, end=3) == "last"
    assert begin_again(run, end=2) == run.folder / PREVIOUS
