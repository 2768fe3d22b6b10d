"""The model card of a pipeline, from what its run wrote down."""

import json
from pathlib import Path
from typing import Any

import yaml

from snapgen_pl import checkpoints
from snapgen_pl.config_files import Value
from snapgen_pl.last_start import LastStart
from snapgen_pl.markdown import table
from snapgen_pl.metrics.sample_metric import Score
from snapgen_pl.metrics.sample_report import read_report
from snapgen_pl.pipeline.ingredients import MADE_FROM, Ingredient, ingredients
from snapgen_pl.pipeline.licences import STABILITY, most_restrictive
from snapgen_pl.pipeline.places import TEXT_ENCODERS
from snapgen_pl.pipeline.snapgen_pipeline import SnapGenPipeline
from snapgen_pl.pipeline.terms import known, terms
from snapgen_pl.pretrained_folder import HUB_NAME
from snapgen_pl.trained_run import TrainedRun

METRICS = "metrics.json"
_STAGES = {
    "Pretrain": "pretraining: rectified flow on data alone",
    "Distill": "distillation: rectified flow on data, and a frozen teacher's velocities and features",
    "StepDistill": "adversarial step distillation: a few-step generator, against a discriminator on a frozen teacher's "
    "features",
}


def model_card(source: TrainedRun, pipeline: SnapGenPipeline, name: str) -> str:
    """The card, as Markdown under a head in YAML.

    Args:
        source: the run.
        pipeline: what was made of it.
        name: of the pipeline's folder.

    Raises:
        ValueError: where the run's manifest or measurement is missing or damaged, naming it.
    """
    made_from = ingredients(source.config)
    seen: int | None = checkpoints.read(source.checkpoint, verify=False).get("images_seen")
    sections = [
        f"# {name}",
        _about(pipeline, made_from),
        "## Drawing",
        _drawing(pipeline, name),
        "## Training",
        _training(source, pipeline, seen),
        "## Measured",
        _measured(source.folder / METRICS, seen),
        "## Licences",
        terms(made_from),
        "## Use and limits",
        _limits(pipeline),
    ]
    head = yaml.safe_dump(_head(pipeline, made_from), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _head(pipeline: SnapGenPipeline, made_from: list[Ingredient]) -> dict[str, Value]:
    whole = most_restrictive(each.licence for each in made_from)
    head: dict[str, Value] = {"license": "unknown" if whole is None else whole.identifier}
    if whole is not None and whole.short:
        head |= {"license_name": whole.short}
    if whole is not None and whole.link:
        head |= {"license_link": whole.link}
    takes_text = pipeline.conditioner.conditioner.takes == "caption"
    head |= {"library_name": "diffusers"}
    head |= {"pipeline_tag": "text-to-image" if takes_text else "unconditional-image-generation"}
    head |= {"tags": ["snapgen", "rectified-flow", *([] if takes_text else ["class-conditional"])]}
    teachers = [each.name for each in made_from if each.role == "teacher" and HUB_NAME.fullmatch(each.name)]
    if teachers:
        head |= {"base_model": list(dict.fromkeys(teachers))}
    return head | {MADE_FROM: [each.facts() for each in made_from]}


def _about(pipeline: SnapGenPipeline, made_from: list[Ingredient]) -> str:
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    takes = "texts" if pipeline.conditioner.conditioner.takes == "caption" else "names of classes"
    side = pipeline.config["image_size"]
    lines = [
        f"Images of {side} x {side} pixels from {takes}, by rectified flow: a denoiser of {parameters / 1e6:,.1f} M "
        "parameters, trained with SnapGen-PL, an open implementation of SnapGen (arXiv 2412.09619). These are not its "
        "authors' weights, and not their results."
    ]
    if STABILITY in known(made_from):
        lines.append("**Powered by Stability AI**")
    return "\n\n".join(lines)


def _drawing(pipeline: SnapGenPipeline, name: str) -> str:
    classes = pipeline.conditioner.config.classes
    asked = f"class_labels={classes[0]!r}" if classes else 'prompt="a red apple"'
    return (
        f"With SnapGen-PL installed, from the folder that holds `{name}`:\n\n"
        "```python\n"
        "from snapgen_pl.pipeline.snapgen_pipeline import SnapGenPipeline\n\n"
        f"pipeline = SnapGenPipeline.from_pretrained({name!r})\n"
        f"pipeline({asked}, seed=0).images[0].save('image.png')\n"
        "```\n\n"
        f"By default {pipeline.config['num_inference_steps']} steps of {type(pipeline.scheduler).__name__}, guidance "
        f"{pipeline.config['guidance_scale']:g}; `seed` draws what `python -m snapgen_pl generate --seed` draws, "
        "`generator` what diffusers' users expect."
    )


def _training(source: TrainedRun, pipeline: SnapGenPipeline, seen: int | None) -> str:
    start = LastStart(source.folder)
    changes = {True: ", with changes that are not in it", False: "", None: ", whether changed is unknown"}
    packages = start.said(dict, "packages") or {}
    rows = {
        "stage": _STAGES.get(source.module_name, source.module_name),
        "weights": f"averaged (EMA), after {checkpoints.step_of(source.checkpoint):,} steps of the optimizer and "
        f"{'an unknown number of' if seen is None else f'{seen:,}'} images",
        "data": _data(source, start),
        "teacher": _teacher(start.said(dict, "teacher")),
        "begun with": _begun(start.said(dict, "init_from")),
        "text encoders": ", ".join(type(each).__name__ for each in pipeline.conditioner.text_encoders.values()),
        "seed": start.said(int, "seed"),
        "code": f"snapgen_pl {start.said(str, 'code', 'version') or 'unknown'}, "
        f"commit {start.said(str, 'code', 'commit') or 'unknown'}{changes[start.said(bool, 'code', 'dirty')]}",
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "begun on": start.said(str, "time"),
    }
    return table(("", ""), ((key, value) for key, value in rows.items() if value not in (None, "")))


def _data(source: TrainedRun, start: LastStart) -> str:
    config = source.config.get("data")
    settings = config.get("init_args") if isinstance(config, dict) else None
    kind = settings.get("source") if isinstance(settings, dict) else None
    name = str(kind.get("class_path")).rpartition(".")[2] if isinstance(kind, dict) else "unknown"
    count = start.said(int, "data", "training_images")
    return (
        f"{name}, {'an unknown number of' if count is None else f'{count:,}'} training images in "
        f"{len(start.said(list, 'data', 'classes') or ())} classes, fingerprint "
        f"{start.said(str, 'data', 'fingerprint') or 'unknown'}"
    )


def _teacher(facts: dict[str, Any] | None) -> str:
    if not facts:
        return ""
    return f"{facts.get('class')} of weights {facts.get('weights')}, {facts.get('guidance', 'unguided')}"


def _begun(facts: dict[str, Any] | None) -> str:
    if not facts:
        return ""
    place = Path(str(facts.get("checkpoint") or facts.get("pipeline")))
    said = {key: value for key, value in facts.items() if key not in ("checkpoint", "pipeline")}
    name = place.parent.name if "checkpoint" in facts else place.name
    return ", ".join([f"`{name}`", *(f"{key} {value}" for key, value in said.items())])


def _measured(path: Path, seen: int | None) -> str:
    if not path.is_file():
        return "Nothing was measured of these weights."
    report = read_report(path)
    figures = table(
        ("images", *report.values),
        (
            (name, *(_figure(scores.get(each)) for each in report.values))
            for name, scores in {"this": report.values, **report.controls}.items()
        ),
    )
    protocol = {key: getattr(report, key) for key in ("measurement", "drawing", "weights", "made")}
    measured = report.weights.get("images_seen")
    whose = "these weights" if measured == seen else f"weights of {measured} images, and these have seen {seen}"
    return (
        f"{figures}\n\nThe first row is of {whose}; the others are images of known quality beside them. "
        "Values compare where the protocol is the same, and there alone:\n\n"
        f"```json\n{json.dumps(_without_places(protocol), indent=1)}\n```"
    )


def _figure(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.value:.4g}" + ("" if score.spread is None else f" ± {score.spread:.2g}")


def _without_places(value: Any) -> Any:
    """A record without commands, which tell where things lay."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items() if key not in ("command", "hardware")}
    return value


def _limits(pipeline: SnapGenPipeline) -> str:
    side = pipeline.config["image_size"]
    lines = [
        "- It is for research on small text-to-image models and their training.",
        f"- It knows what its training images show, at {side} x {side} pixels, and nothing else.",
        "- Nothing was filtered, and nobody has examined its images for safety, bias or likeness to training images.",
        "- It is as good as the figures above say, if there are any; what SnapGen's authors report is not claimed.",
    ]
    if pipeline.conditioner.conditioner.takes == "caption":
        encoders = len(pipeline.conditioner.text_encoders)
        lines.insert(2, "- It understands the language of its captions.")
        if encoders > 1:
            names = " and ".join(f"`{name}=None`" for name in TEXT_ENCODERS[1:encoders])
            lines.append(f"- `from_pretrained` with {names} does without those text encoders, in less memory.")
    return "\n".join(lines)
