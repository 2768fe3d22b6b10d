import csv
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.emoji_distillation import plot
from snapgen_pl.metrics.sample_metric import Score
from snapgen_pl.metrics.sample_report import SampleReport
from snapgen_pl.tables import distillation, emoji, steps
from snapgen_pl.tables.decoder_records import FULL, DecoderRecord
from snapgen_pl.tables.published import DECODERS
from snapgen_pl.tables.records import RowRecord, read_records, recipe
from snapgen_pl.tables.t2i import read_speed
from snapgen_pl.tables.table import table
from tests.metrics.test_sample_report import REPORT

Row = dict[str, Any]


@pytest.fixture(scope="module")
def ablation() -> list[Row]:
    return json.loads(table("ablation", "json"))


@pytest.fixture(scope="module")
def imagenet256() -> list[Row]:
    return json.loads(table("imagenet256", "json"))


def test_the_ablation_counts_what_is_known_of_it(ablation: list[Row]) -> None:
    """Figures counted from an independent prototype, and the published totals of the last row."""
    assert [row["params_m"] for row in ablation] == pytest.approx(
        [634.1, 623.6, 483.4, 511.1, 445.4, 372.05, 372.37, 372.38], abs=0.06
    )
    assert [row["gmacs_128"] for row in ablation] == pytest.approx(
        [1266.8, 1052.1, 712.8, 755.1, 663.7, 624.2, 644.6, 644.6], abs=0.06
    )
    assert ablation[-1]["gmacs_32"] == pytest.approx(37.92, abs=0.005)


def test_counted_changes_are_near_the_published_ones(ablation: list[Row]) -> None:
    for row in ablation:
        for name in ("params_change", "macs_change"):
            if row[f"{name}_published"] is not None:
                assert row[name] == pytest.approx(row[f"{name}_published"], abs=3.1)


def test_markdown_says_the_same(ablation: list[Row]) -> None:
    lines = table("ablation", "md").splitlines()
    assert lines[1 + len(ablation)].startswith("| 8. QK norm, RoPE: SnapGen | 372.38 | 37.92 | 644.6 |")


def test_every_model_of_the_imagenet_table_counts_as_published(imagenet256: list[Row]) -> None:
    assert [row["model"] for row in imagenet256] == ["LDM-4", "U-ViT-L", "U-ViT-H", "DiT-XL", "SiT-XL", "SnapGen"]
    for row in imagenet256:
        assert row["params_m"] == pytest.approx(row["params_m_published"], rel=0.01), row["model"]
        assert row["gmacs"] == pytest.approx(row["gmacs_published"], rel=0.01), row["model"]
    assert list(imagenet256[0]) == [
        "model",
        "params_m",
        "params_m_published",
        "gmacs",
        "gmacs_published",
        "fid_published",
        "fid_measured",
    ]


def test_the_decoders_count_as_published_and_every_step_saves() -> None:
    """The totals of SDXL, SD3 and SnapGen are those of section 2 of the notes on the paper, counted elsewhere."""
    rows = {row["decoder"]: row for row in json.loads(table("decoder", "json"))}
    assert {key: (rows[key]["params_m"], rows[key]["gflops_1024"]) for key in ("sdxl", "sd3", "snapgen")} == {
        "sdxl": (49.4902, 4969.94),
        "sd3": (49.5455, 4970.85),
        "snapgen": (1.3834, 224.96),
    }
    for before, after in pairwise([rows[each.key] for each in DECODERS[1:]]):
        assert after["params_m"] < before["params_m"]
        assert after["gflops_1024"] < before["gflops_1024"]
    for row in rows.values():
        if row["params_m_published"] is not None:
            assert row["params_m"] == pytest.approx(row["params_m_published"], rel=0.005), row["decoder"]
            assert row["gflops_1024"] == pytest.approx(row["gflops_1024_published"], rel=0.005), row["decoder"]


def test_what_was_measured_of_a_decoder_stands_beside(tmp_path: Path) -> None:
    values = {"psnr": 26.5, "ssim": 0.75, "lpips": 0.125}
    record = DecoderRecord(
        "snapgen",
        0,
        FULL.recipe("snapgen"),
        5600,
        34.5,
        "a machine",
        "2026-01-01",
        None,
        "abc",
        {"512": values, "1024": values},
    )
    record.write(tmp_path)
    rows = {row["decoder"]: row for row in json.loads(table("decoder", "json", tmp_path))}
    assert {key: row["psnr_1024"] for key, row in rows.items() if row["psnr_1024"] is not None} == {"snapgen": 26.5}
    assert (rows["snapgen"]["crops"], rows["snapgen"]["lpips_512"]) == (5600, 0.125)
    cell = "26.50 / 0.750 / 0.125"
    assert f"SnapGen | 1.38 / 1.38 | 225 / 224 | 27.85 | 5600 | {cell} | {cell} |" in table("decoder", "md", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "another"}, "is no record of a decoder"),
        ({"recipe": "abc"}, "trained by another recipe"),
        ({"autoencoder": "def"}, "of several encoders"),
    ],
)
def test_decoders_that_do_not_compare_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    sizes = {size: {"psnr": 20.0, "ssim": 0.5, "lpips": 0.5} for size in ("512", "1024")}
    for row, changed in (("snapgen", {}), ("sd3", change)):
        fields = {"row": row, "seed": 0, "recipe": FULL.recipe(row), "crops": 1, "training_seconds": 1.0}
        fields |= {"machine": "a machine", "date": "2026-01-01", "commit": None, "autoencoder": "abc", "sizes": sizes}
        (tmp_path / f"{row}.json").write_text(json.dumps(fields | changed))
    with pytest.raises(ValueError, match=message):
        table("decoder", "md", tmp_path)


def test_csv_holds_what_json_does(imagenet256: list[Row]) -> None:
    rows = list(csv.DictReader(io.StringIO(table("imagenet256", "csv"))))
    assert [{key: str(value or "") for key, value in row.items()} for row in imagenet256] == rows


def test_a_measured_fid_is_shown_where_a_report_of_the_full_protocol_lies(tmp_path: Path) -> None:
    full = replace(REPORT, values={"fid": Score(2.345)}, measurement={"samples": 50_000, "labels": "uniform"})
    full.write(tmp_path / "sit_xl.json")
    full.write(tmp_path / "3_separable.json")
    rows = json.loads(table("imagenet256", "json", tmp_path))
    assert {row["model"]: row["fid_measured"] for row in rows if row["fid_measured"]} == {"SiT-XL": 2.345}
    assert json.loads(table("ablation", "json", tmp_path))[2]["fid_measured"] == 2.345
    assert "| SiT-XL | 673.7 / 675 | 118.6 / 119 | 2.06 | 2.35 |" in table("imagenet256", "md", tmp_path)


@pytest.mark.parametrize(
    ("values", "labels"), [({"fid@5000": Score(9.0)}, "uniform"), ({"fid": Score(2.0)}, "frequencies")]
)
def test_a_fid_of_less_than_the_full_protocol_is_refused(tmp_path: Path, values: dict[str, Score], labels: str) -> None:
    replace(REPORT, values=values, measurement={"labels": labels}).write(tmp_path / "sit_xl.json")
    with pytest.raises(ValueError, match=r"sit_xl\.json is not of 50,000 samples of uniform labels"):
        table("imagenet256", "md", tmp_path)


def test_fids_of_different_protocols_do_not_share_the_column(tmp_path: Path) -> None:
    for name, reference in (("sit_xl", "a"), ("dit_xl", "b")):
        measurement = {"labels": "uniform", "metrics": {"inception": {"reference_sha256": reference}}}
        replace(REPORT, values={"fid": Score(2.0)}, measurement=measurement).write(tmp_path / f"{name}.json")
    with pytest.raises(
        ValueError, match=r"do not stand in one column: they differ in metrics\.inception\.reference_sha"
    ):
        table("imagenet256", "md", tmp_path)


def small(folder: Path, row: str, values: list[float], **changes: Any) -> None:
    hardware = {"gpus": "", "cpu": "a core", "threads": 1}
    for seed, value in enumerate(values):
        report = replace(
            REPORT,
            values={"kid_effnet": Score(value, 0.2)},
            controls={"8px": {"kid_effnet": Score(4.4)}},
            weights={"images_seen": 6000},
            made={"hardware": hardware},
            **changes,
        )
        RowRecord(row, seed, recipe(emoji.FILES[row]), {"loss": 0.8}, 100.0, report).write(folder)


def test_a_difference_within_the_seeds_deviation_is_not_resolved(tmp_path: Path) -> None:
    small(tmp_path, "8_reference", [5.0, 5.2, 5.4])
    small(tmp_path, "1_sdxl_thin", [5.5, 5.6, 5.4])
    small(tmp_path, "dit_xl", [9.0, 9.1, 9.2])
    small(tmp_path, "ldm_4", [9.0])
    rows = {row["row"]: row for row in json.loads(table("emoji", "json", tmp_path))}
    assert rows["1. thin SDXL"]["resolved"] is False
    assert rows["DiT-XL, SiT-XL"]["resolved"] is True
    assert rows["LDM-4"]["resolved"] is None
    assert rows["8. QK norm, RoPE: SnapGen"]["kid_effnet"] == pytest.approx(5.2)
    assert rows["8. QK norm, RoPE: SnapGen"]["kid_effnet_sd"] == pytest.approx(0.2)
    assert (rows["U-ViT-H"]["seeds"], rows["U-ViT-H"]["kid_effnet"]) == (0, None)
    text = table("emoji", "md", tmp_path)
    assert re.search(r"\| 1\. thin SDXL \|.*\| 5\.50 ± 0\.10 \|.*\| not resolved \|", text)
    assert re.search(r"\| LDM-4 \|.*\| one seed \|", text)
    assert "6,000 images" in text
    assert "8px 4.40" in text


def test_records_of_another_sampler_or_another_recipe_do_not_stand_in_the_small_table(tmp_path: Path) -> None:
    small(tmp_path / "a", "8_reference", [5.0])
    small(tmp_path / "a", "dit_xl", [5.0], drawing={"sampler": "Heun", "guidance": "Guidance(scale=1.0)"})
    with pytest.raises(ValueError, match="differ in sampler"):
        table("emoji", "md", tmp_path / "a")
    small(tmp_path / "b", "8_reference", [5.0])
    file = tmp_path / "b" / "8_reference-seed0.json"
    file.write_text(file.read_text().replace(recipe(emoji.FILES["8_reference"]), "another"))
    with pytest.raises(ValueError, match=r"8_reference-seed0\.json: trained by another recipe than .*base\.yaml"):
        table("emoji", "md", tmp_path / "b")
    (tmp_path / "b" / "8_reference-seed0.json").write_text("{}")
    with pytest.raises(ValueError, match="is no record of a table's row"):
        table("emoji", "md", tmp_path / "b")


def test_the_cost_is_the_schedule_over_the_speed_and_says_what_was_measured(tmp_path: Path) -> None:
    record = {
        "batch": 2,
        "environment": {"processor": "a core", "threads": 1},
        "training": {"snapgen": {"wall_median_s": 4.0}},
    }
    (tmp_path / "unet_cpu.json").write_text(json.dumps(record))
    rows = json.loads(table("cost", "json", tmp_path))
    (measured,) = [row for row in rows if row["basis"] == "measured" and row["schedule"].startswith("400K")]
    assert (measured["model"], measured["images_per_s"]) == ("SnapGen", 0.5)
    assert measured["hours"] == pytest.approx(400_000 * 256 / 0.5 / 3600, rel=1e-4)
    assumed = {(row["model"], row["device"]): row["images_per_s"] for row in rows if row["basis"] == "assumed"}
    # By hand: 35 % of 989 TFLOP/s over 6 x 37.92 GMACs.
    assert assumed["SnapGen", "H100"] == pytest.approx(0.35 * 989e12 / (6 * 37.92e9), rel=1e-3)


def test_the_cost_takes_the_fastest_batch_that_was_trained_as_fit_trains(tmp_path: Path) -> None:
    rows = [
        {"task": "training", "compiled": True, "images_per_s": 300.0},  # as older records have it
        {"task": "training", "compiled": True, "graphed": False, "images_per_s": 400.0},
        {"task": "training", "compiled": True, "graphed": False, "images_per_s": None},
        {"task": "training", "compiled": True, "graphed": True, "images_per_s": 900.0},
        {"task": "training", "compiled": False, "graphed": False, "images_per_s": 800.0},
        {"task": "forward", "compiled": True, "graphed": False, "images_per_s": 2000.0},
    ]
    record = {"environment": {"accelerator": "a card"}, "rows": {"snapgen": rows, "dit_xl_2": rows[2:]}}
    (tmp_path / "unet_cuda.json").write_text(json.dumps(record))
    measured = [row for row in json.loads(table("cost", "json", tmp_path)) if row["basis"] == "measured"]
    assert {(row["model"], row["device"], row["images_per_s"]) for row in measured} == {("SnapGen", "a card", 400.0)}


def test_steps_of_all_stages_are_shown_with_the_share_that_is_the_students(tmp_path: Path) -> None:
    def step(student: float, **others: float) -> dict[str, object]:
        parts = {part: {"cpu_min_s": seconds} for part, seconds in {"student": student, **others}.items()}
        return {"step": {"cpu_min_s": student + sum(others.values()), "rounds": 2}, "parts": parts}

    record = {
        "batch": 1,
        "size": 32,
        "environment": {"processor": "a core", "date": "2026-11-27T00:00:00+00:00"},
        "costs": {"teacher": {"params": 388_000_000, "macs": 73_000_000_000}},
        "stages": {
            "pretraining": {"snapgen": step(3.0, optimizer=1.0), "dit_xl_2": step(9.0, optimizer=1.0)},
            "discriminator": {"snapgen": step(1.0, teacher=3.0), "dit_xl_2": step(3.0, teacher=3.0)},
        },
    }
    (tmp_path / "training_cpu.json").write_text(json.dumps(record))
    shown = table("training", "md", tmp_path)
    assert "| student | pretraining | discriminator's turn |" in shown
    assert "| DiT-XL/2 | 10.00 / 2.50 / 90 | 6.00 / 1.50 / 50 |" in shown
    assert "2 interleaved rounds on one core (a core, 2026-11-27)" in " ".join(shown.split())
    rows = json.loads(table("training", "json", tmp_path))
    assert [row["teacher_share"] for row in rows] == [0, 0, 75, 50]
    with pytest.raises(ValueError, match=r"make one: python -m benchmarks\.training --json"):
        table("training", "md", tmp_path / "nothing")


def test_step_times_are_ratios_of_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "emoji_table"
    small(folder, "8_reference", [5.0])
    times = {"snapgen": {"cpu_min_s": 2.0}, "dit_xl": {"cpu_min_s": 5.0}}
    (tmp_path / "emoji_table_speed.json").write_text(json.dumps({"training": times}))
    rows = {row["row"]: row["step_time"] for row in json.loads(table("emoji", "json", folder))}
    assert (rows["8. QK norm, RoPE: SnapGen"], rows["DiT-XL, SiT-XL"], rows["LDM-4"]) == (1.0, 2.5, None)


def test_the_table_of_distillation_has_what_students_say_of_teacher_and_captions(tmp_path: Path) -> None:
    hardware = {"gpus": "", "cpu": "a core", "threads": 1}
    for row, validation, top1, images in (
        ("teacher", {"loss": 0.5}, [0.25], 72_000),
        ("student", {"loss": 0.8, "kd": 0.3}, [0.05], 24_000),
        ("timestep_aware", {"loss": 0.7, "kd": 0.2, "feature": 0.1}, [0.10, 0.14], 24_000),
    ):
        for seed, value in enumerate(top1):
            report = replace(
                REPORT,
                values={"kid_effnet": Score(5.0, 0.2), "judge_top1": Score(value), "judge_style": Score(0.75)},
                controls={"real": {"kid_effnet": Score(0.0), "judge_top1": Score(0.43)}, "shuffled": {}},
                weights={"images_seen": images},
                made={"hardware": hardware},
            )
            files = distillation.RECIPES[row]
            by_time = {name: {"0.0": 2 * value, "0.1": value} for name, value in validation.items()}
            RowRecord(row, seed, recipe(files), validation, 100.0 + seed, report, by_time).write(tmp_path)
    rows = {row["row"]: row for row in json.loads(table("distillation", "json", tmp_path))}
    assert len(rows) == len(distillation.ROWS)
    ours = rows["the same, timestep-aware: SnapGen"]
    assert (ours["seeds"], ours["images"], ours["kd"]) == (2, 24_000, 0.2)
    assert ours["judge_top1"] == pytest.approx(0.12)
    assert ours["judge_top1_sd"] == pytest.approx(0.02 * 2**0.5)
    assert (rows["the teacher"]["kd"], rows["outputs"]["seeds"], rows["outputs"]["kid_effnet"]) == (None, 0, None)
    text = table("distillation", "md", tmp_path)
    assert "| the teacher | 0.500 |  | 5.00 | 25.0 | 75.0 | 72,000 | 100 | 1 |" in text
    assert "| 12.0 ± 2.8 |" in text
    assert "real: kid_effnet 0.00, judge_top1 43.0" in " ".join(text.split())
    plot(read_records(tmp_path, distillation.RECIPES), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1000


def test_the_table_of_steps_says_what_is_won_back(tmp_path: Path) -> None:
    folder = tmp_path / "emoji_steps"
    hardware = {"gpus": "", "cpu": "a core", "threads": 1}
    for row, kids in (("student_28", [5.0]), ("student_4", [9.0]), ("four_step", [6.0, 5.6])):
        for seed, kid in enumerate(kids):
            report = replace(
                REPORT,
                values={"kid_effnet": Score(kid, 0.2), "judge_top1": Score(0.05)},
                controls={"real": {"kid_effnet": Score(0.0)}, "shuffled": {}},
                drawing=REPORT.drawing | {"sampler": row},  # each row has its own
                made={"hardware": hardware},
            )
            more = {"diversity": 0.3 + seed / 10}
            RowRecord(row, seed, recipe(steps.RECIPES[row]), {}, 60.0, report, more=more).write(folder)
    times = {"student_28": {"wall_median_s": 0.5}, "four_step": {"wall_median_s": 0.04}}
    (tmp_path / "emoji_steps_speed.json").write_text(json.dumps({"timings": times}))
    rows = {row["row"]: row for row in json.loads(table("steps", "json", folder))}
    assert len(rows) == len(steps.ROWS)
    ours = rows["4 steps: adversarial and S"]
    assert ours["won_back"] == pytest.approx((9.0 - 5.8) / (9.0 - 5.0))
    assert (ours["diversity"], ours["milliseconds"], ours["seeds"]) == (pytest.approx(0.35), 40.0, 2)
    assert [rows[name]["won_back"] for name in ("the student, 4 steps, guided", "4 steps: S alone")] == [None, None]
    text = table("steps", "md", folder)
    assert "| 4 steps: adversarial and S | 5.80 ± 0.28 | 80 | 5.0 ± 0.0 | 0.350 ± 0.071 | 40 | 60 | 2 |" in text
    assert "Nothing is measured yet" in table("steps", "md", tmp_path / "nowhere")


def test_a_recipe_is_what_trains_and_not_what_looks(tmp_path: Path) -> None:
    base = {"model": {"lr": 1}, "trainer": {"max_steps": 5, "val_check_interval": 1}}

    def of(**trainer: object) -> str:
        file = tmp_path / "row.yaml"
        file.write_text(json.dumps(base | {"name": "a", "trainer": base["trainer"] | trainer}))
        return recipe([file])

    grid = {"class_path": "callbacks.sample_grid.SampleGrid"}
    scaling = {"class_path": "callbacks.timestep_scaling.TimestepAwareScaling"}
    assert of() == of(val_check_interval=2) == of(callbacks=[grid])
    assert len({of(), of(max_steps=6), of(callbacks=[scaling]), of(callbacks=[grid, scaling])}) == 3


def t2i_report(**values: float) -> SampleReport:
    return replace(REPORT, values={name: Score(value) for name, value in values.items()})


def test_text_to_image_stands_as_published_and_counts_our_network() -> None:
    rows = {row["model"]: row for row in json.loads(table("t2i", "json"))}
    assert len(rows) == 12
    ours, without = rows["SnapGen"], rows["SnapGen without distillation"]
    assert ours["params_b"] == without["params_b"] == 0.3795  # 379.51 M with a context of 2,304
    assert [name for name, row in rows.items() if row["params_b"] is not None] == [without["model"], ours["model"]]
    published = ("geneval", "dpg", "clip", "image_reward", "images_per_s", "params_b")
    assert [ours[f"{name}_published"] for name in published] == [0.66, 81.1, 0.332, 1.32, 1.04, 0.38]
    assert [rows["Sana"][f"{name}_published"] for name in published] == [0.66, 84.8, 0.327, 1.25, 1.00, 1.6]
    assert "| SnapGen | 0.380 / 0.38 | 1.04 | 0.66 | 81.1 | 0.332 | 1.32 |" in table("t2i", "md")


def test_what_was_measured_of_text_to_image_stands_beside(tmp_path: Path) -> None:
    for name, values in {
        "snapgen-geneval": {"geneval": 0.5, "geneval_colors": 0.75},
        "snapgen_no_kd-geneval": {"geneval": 0.25},
        "snapgen-dpg_blip": {"dpg_blip": 62.5},
        "snapgen-clip": {"clip_score": 0.25, "clip_truncated": 0},
        "snapgen-image_reward": {"image_reward": -0.5},
    }.items():
        t2i_report(**values).write(tmp_path / f"{name}.json")
    rows = {row["model"]: row for row in json.loads(table("t2i", "json", tmp_path))}
    measured = ("geneval", "dpg_blip", "clip", "image_reward")
    assert [rows["SnapGen"][name] for name in measured] == [0.5, 62.5, 0.25, -0.5]
    assert [rows["SnapGen without distillation"][name] for name in measured] == [0.25, None, None, None]
    assert table("t2i", "md", tmp_path).splitlines()[13].endswith("|  | 0.50 | 62.5 | 0.250 | -0.50 |")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("snapgen-geneval", {"geneval@2000": 0.5}, "another judge or less than the whole protocol"),
        ("snapgen-dpg_blip", {"dpg": 80.0}, "holds dpg, not dpg_blip"),
        ("snapgen-dpg", {"dpg": 80.0}, "has no place in the table"),
        ("flux-geneval", {"geneval": 0.7}, "has no place in the table"),
    ],
)
def test_text_to_image_by_another_judge_is_refused(
    tmp_path: Path, name: str, values: dict[str, float], said: str
) -> None:
    t2i_report(**values).write(tmp_path / f"{name}.json")
    with pytest.raises(ValueError, match=said):
        table("t2i", "md", tmp_path)


def test_a_column_of_text_to_image_is_of_one_protocol(tmp_path: Path) -> None:
    report = t2i_report(clip_score=0.3)
    report.write(tmp_path / "snapgen-clip.json")
    replace(report, measurement={**report.measurement, "prompts": "others"}).write(tmp_path / "sdxl-clip.json")
    with pytest.raises(ValueError, match="were measured differently and do not stand in one column"):
        table("t2i", "md", tmp_path)


def test_the_throughput_of_the_text_to_image_table_is_of_full_size_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    assert read_speed(file) is None
    gpu = {"environment": {"accelerator": "NVIDIA H100"}, "images_per_s": {"all": 1.5, "text": 9.0}}
    file.write_text(json.dumps({**gpu, "size": "full"}))
    assert read_speed(file) == 1.5
    file.write_text(json.dumps({**gpu, "size": "small"}))
    with pytest.raises(ValueError, match="is of the size small"):
        read_speed(file)
    file.write_text(json.dumps({**gpu, "size": "full", "environment": {"accelerator": None}}))
    with pytest.raises(ValueError, match="is of a CPU"):
        read_speed(file)
