"""The verb ``table memory``: what a training configuration needs of each GPU."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from snapgen_pl.distill.feature_loss import FeatureLoss, FeaturePair
from snapgen_pl.errors import ShortErrors
from snapgen_pl.experiments import find_config
from snapgen_pl.merged_config import merged_config
from snapgen_pl.models.activations import saved, saved_by_unit, working_bytes
from snapgen_pl.models.denoiser import Conditioning, Denoiser
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.tables.declared import filled
from snapgen_pl.tables.layout import Format, Table
from snapgen_pl.tables.parts import (
    Asked,
    Settings,
    TeacherNetwork,
    class_name,
    conditioner,
    denoiser,
    latents,
    run_teacher,
    sd3_teacher,
)
from snapgen_pl.teachers.teacher import Teacher
from snapgen_pl.trained_run import arguments

GIB = 2**30
_TRAINED = ("Pretrain", "Distill", "StepDistill")
_TEACHERS: dict[str, Callable[[Settings], TeacherNetwork]] = {"SD3Teacher": sd3_teacher, "RunTeacher": run_teacher}
# What trained weights are held in, and whether autocast lowers products.
_PRECISIONS = {
    "32": (torch.float32, False),
    "32-true": (torch.float32, False),
    "bf16-mixed": (torch.float32, True),
    "bf16-true": (torch.bfloat16, False),
}
Strategy = Literal["ddp", "fsdp2"]

NOTES = """\
Counted on the meta device; nothing is run or downloaded. Weights, gradients, the optimizer's state and the average are
fp32 unless trainer.precision says otherwise. Gradients stand beside all activations, as they do when they accumulate.
Under autocast each trained weight of a product also has a bf16 copy. Activations are what autograd keeps of one forward
pass, each storage once, by the rules of CUDA's autocast, eager: compiled modules need less. Attention and RMS norm are
taken to be fused; where a mask meets multi-query attention a GPU may fuse none, and needs more (0.75 GiB an image for
the reference UNet at 1024 px). A teacher without gradients holds the most that its forward pass holds at once; one that
a discriminator looks through keeps its activations. A sharded network gathers what is in no unit, and two units. Not
counted are losses, temporaries of the backward pass, activations of text encoders and autoencoders, the drawing of
samples, images on their way, CUDA's context, and what the allocator rounds up or leaves in pieces."""


class MemoryRow(NamedTuple):
    """A part of what a GPU holds.

    Attributes:
        part: which.
        gib_per_gpu: GiB on each GPU.
        scales_with: what more of it comes with; empty for a sum.
        images: of a micro-batch, where the part depends on it.
    """

    part: str
    gib_per_gpu: float
    scales_with: str
    images: int | None


class Part(NamedTuple):
    """As in a row, in bytes; ``images`` tells whether it is of each image."""

    name: str
    size: float
    scales_with: str
    image: bool = False


class Recipe(NamedTuple):
    """What of a configuration needs memory.

    Attributes:
        model: the module's arguments.
        network: the denoiser, on the meta device.
        asked: its conditioner.
        projections: parameters of the features' projections.
        discriminator: where there is one.
        teacher: where one is asked.
        stored: names of the text encoders whose states are stored.
        averaged: names of the module's children that are averaged.
        weight: what trained weights are held in.
        autocast: whether products are in bf16 by autocast.
        gpus: how many.
        sharded: whether what is trained is divided among them.
    """

    model: Settings
    network: Denoiser
    asked: Asked
    projections: int
    discriminator: Discriminator | None
    teacher: TeacherNetwork | None
    stored: Sequence[str]
    averaged: Sequence[str]
    weight: torch.dtype
    autocast: bool
    gpus: int
    sharded: bool

    @property
    def trained(self) -> int:
        """Parameters that the (generator's) optimizer trains."""
        return _numel(self.network) + self.asked.parameters + self.projections


def memory(
    config: list[str],
    gpus: int = 1,
    memory: float = 80.0,
    strategy: Strategy | None = None,
    batch: int | None = None,
    format: Format = "md",  # noqa: A002 (the flag's name)
) -> str:
    """Says what a training configuration needs of each GPU, part by part, and the largest micro-batch that fits.

    Args:
        config: YAML, as for fit; several merge, later ones win.
        gpus: how many train together.
        memory: of each, in GiB.
        strategy: ddp holds all on each, fsdp2 divides what is trained; by default the configuration's.
        batch: also the sum at a micro-batch of so many images on each.
        format: Markdown, JSON or CSV.

    Raises:
        ValueError: for numbers below 1, or a configuration that trains no denoiser or names what is not known here.
    """
    if gpus < 1 or memory <= 0 or (batch is not None and batch < 1):
        raise ValueError(f"gpus is {gpus}, memory {memory}, batch {batch}; all must be above 0")
    rows = memory_rows(parts(recipe([find_config(file) for file in config], gpus, strategy)), memory, batch)
    cells = [(row.part, f"{row.gib_per_gpu:.2f}", row.scales_with) for row in rows]
    notes = textwrap.fill(f"GPUs: {gpus}. {NOTES}", 120)
    return Table([row._asdict() for row in rows], ("part", "GiB a GPU", "scales with"), cells, notes).text(format)


def memory_rows(found: Sequence[Part], memory: float, batch: int | None = None) -> list[MemoryRow]:
    """Parts in GiB, and their sums.

    Args:
        found: the parts.
        memory: of a GPU, in GiB.
        batch: also the sum at so many images.
    """
    fixed = sum(part.size for part in found if not part.image)
    image = sum(part.size for part in found if part.image)
    rows = [MemoryRow(part.name, part.size / GIB, part.scales_with, 1 if part.image else None) for part in found]
    fit = max(0, int((memory * GIB - fixed) // image))
    sums = {"all but images": 0, **({} if batch is None else {f"all, at a micro-batch of {batch}": batch})}
    sums[f"all, at the largest micro-batch in {memory:g} GiB: {fit or 'none fits'}"] = fit
    rows += [MemoryRow(name, (fixed + images * image) / GIB, "", images) for name, images in sums.items()]
    return [row._replace(gib_per_gpu=round(row.gib_per_gpu, 4)) for row in rows]


def recipe(files: Sequence[Path], gpus: int = 1, strategy: Strategy | None = None) -> Recipe:
    """Reads what configurations declare together.

    Raises:
        ValueError: as :func:`memory`.
    """
    whole: dict[str, Any] = merged_config(files)
    declared = whole.get("model")
    if not isinstance(declared, dict) or "class_path" not in declared:
        raise ValueError(
            f"{', '.join(map(str, files))} declares no model with its class_path; a delta comes after its base: "
            "--config BASE --config DELTA"
        )
    if (stage := class_name(declared)) not in _TRAINED:
        raise ValueError(f"a {stage} is not counted here; give a configuration of {', '.join(_TRAINED)}")
    model: dict[str, Any] = arguments(declared)
    data: dict[str, Any] = arguments(whole.get("data"))
    trainer: dict[str, Any] = whole.get("trainer") or {}
    precision = str(trainer.get("precision") or "32-true")
    if precision not in _PRECISIONS:
        raise ValueError(f"trainer.precision is {precision}; {', '.join(_PRECISIONS)} are counted here")
    weight, autocast = _PRECISIONS[precision]
    network = denoiser(model).to(weight)
    pairs = model.get("features") or [] if model.get("feature_weight", 1) else []
    heads = model.get("discriminator") if stage == "StepDistill" else None
    with torch.device("meta"):
        projections = FeatureLoss([FeaturePair(**pair) for pair in pairs]) if pairs else nn.Identity()
        discriminator = None if heads is None else _discriminator(arguments(heads)).to(weight)
    return Recipe(
        model,
        network,
        conditioner(model["conditioner"], network.context_dim),
        sum(parameter.numel() for parameter in projections.parameters()),
        discriminator,
        None if data.get("teacher_outputs") and stage == "Distill" else _teacher(model),
        list(data.get("text_states") or {}),
        (whole.get("ema") or {}).get("modules", ("denoiser", "conditioner")),
        weight,
        autocast,
        gpus,
        _sharded(trainer.get("strategy")) if strategy is None else strategy == "fsdp2",
    )


def parts(of: Recipe) -> list[Part]:
    """What a recipe needs, in bytes on each GPU."""
    whole, each = 1 / of.gpus if of.sharded else 1.0, of.weight.itemsize
    weights = "trained weights / GPUs" if of.sharded else "trained weights"
    state = _state(of.model.get("optimizer"))
    averaged = {"denoiser": _numel(of.network), "conditioner": of.asked.parameters}
    found = [
        Part("trained: weights", whole * each * of.trained, weights),
        Part("trained: gradients", whole * each * of.trained, weights),
        Part("trained: optimizer state", whole * state * each * of.trained, weights),
        Part("average", whole * 4 * sum(averaged.get(name, 0) for name in of.averaged), weights),
    ]
    if of.sharded:
        found.append(Part("trained: units gathered", each * _gathered(of.network, copies=3), "largest unit"))
    elif of.gpus > 1:
        found.append(Part("trained: DDP's buckets", each * of.trained, weights))
    if of.discriminator is not None:
        copies = 2 + _state(of.model.get("discriminator_optimizer"))
        size = whole * copies * each * _numel(of.discriminator)
        found.append(Part("discriminator, its gradients and optimizer state", size, weights.replace("trained", "its")))
    return [*found, *_frozen(of), *_activations(of)]


def _frozen(of: Recipe) -> list[Part]:
    found: list[Part] = []
    asked = [("", of.asked)]
    if of.teacher is not None:
        network, placement = of.teacher.denoiser, of.teacher.placement
        each = next(network.parameters()).element_size()
        share = {"replicated": 1.0, "sharded": 1 / of.gpus, "offloaded": 0.0}[placement]
        scales = {"replicated": "weights", "sharded": "weights / GPUs", "offloaded": "nothing: the host's memory"}
        buffers = sum(buffer.nbytes for buffer in network.buffers())
        found.append(Part(f"teacher, {_numel(network) / 1e9:.2f} B", share * each * _numel(network) + buffers,
                          scales[placement]))  # fmt: skip
        if placement != "replicated":
            found.append(Part("teacher: units gathered", each * _gathered(network, copies=2), "largest unit"))
        asked.append(("teacher's ", of.teacher.asked))
    for whose, told in asked:
        if told.held:
            found.append(Part(f"{whose}states of class texts", told.held, "classes"))
        found += [
            Part(
                f"{whose}text encoder {name}{_basis(encoder.published)}",
                encoder.bytes_each * encoder.parameters,
                "weights",
            )
            for name, encoder in told.encoders.items()
            if name not in of.stored
        ]
    own = latents(of.model["autoencoder"])
    return [*found, Part(f"autoencoder{_basis(own.published)}", own.size, "weights")]


def _activations(of: Recipe) -> list[Part]:
    """What a first image holds and what a second one adds: the difference is of each, the rest of none."""
    (one, copies), (two, _) = (_held(of, images) for images in (1, 2))
    each = {name: two[name] - one[name] for name in one}
    found = [Part(f"activations, an image: {name}", size, "micro-batch", image=True) for name, size in each.items()]
    rest = Part("activations: others", max(0, sum(one.values()) - sum(each.values())), "resolution")
    cached = [Part("trained: autocast's bf16 copies", copies, "trained weights")] if of.autocast else []
    return [*cached, rest, *found]


def _held(of: Recipe, images: int) -> tuple[dict[str, int], int]:
    """Bytes by the network that holds them for so many images, and those of autocast's copies."""
    own = latents(of.model["autoencoder"])
    side = int(of.model.get("image_size", 256)) // own.downsampling
    x_BCHW = torch.empty(images, own.channels, side, side, device="meta", dtype=of.weight)
    pairs = of.model.get("features") or [] if of.projections else []
    student = _asking(of.network, x_BCHW, of.asked, tuple(pair["student"] for pair in pairs))
    kept = saved(student, _tensors(of.network), of.autocast)
    held = {"denoiser": kept.activations}
    inner = getattr(of.network, "denoiser", of.network)
    if getattr(inner, "activation_checkpointing", False):
        inner.activation_checkpointing = False
        held["recomputed block"] = max(saved_by_unit(student, inner, of.autocast))
        inner.activation_checkpointing = True
    if of.teacher is not None:
        held["teacher"] = _seen(of, of.teacher, x_BCHW)
    return held, kept.copies


def _seen(of: Recipe, teacher: TeacherNetwork, x_BCHW: Tensor) -> int:
    """The most that a teacher holds: when it is asked for a velocity, or when gradients are to pass through it."""
    network, weights = teacher.denoiser, _tensors(teacher.denoiser)
    both = torch.cat([x_BCHW] * (2 if teacher.guided else 1))
    asked = working_bytes(_asking(network, both, teacher.asked), weights, teacher.autocast)
    if of.discriminator is None:
        return asked
    heads = of.discriminator.requires_grad_(False)  # it is not their turn
    noisy_BCHW = x_BCHW.to(next(network.parameters()).dtype).requires_grad_()
    network.requires_grad_(False)
    looking = _asking(network, noisy_BCHW, teacher.asked, heads.features, alone=True)
    through = saved(looking, weights, teacher.autocast).activations
    strides = [network.feature_strides[name] for name in heads.features]
    features = [
        torch.empty(len(noisy_BCHW), read.channels, *(side // stride for side in noisy_BCHW.shape[-2:]),
                    device="meta", dtype=noisy_BCHW.dtype, requires_grad=True)
        for read, stride in zip(heads.inputs, strides, strict=True)
    ]  # fmt: skip
    t_B, summary_BD = (torch.empty(len(x_BCHW), *shape, device="meta") for shape in ((), (heads.summary_dim,)))
    judged = saved(lambda: heads(features, t_B, summary_BD), _tensors(heads), of.autocast)
    return max(asked, through + judged.activations)


def _asking(
    network: Denoiser, x_BCHW: Tensor, asked: Asked, features: tuple[str, ...] = (), alone: bool = False
) -> Callable[[], object]:
    """A pass for a velocity and features, or these alone, what depends on the conditioning alone included.

    That of a frozen network needs no gradients.
    """
    images, dtype = len(x_BCHW), next(network.parameters()).dtype
    x_BCHW, t_B = x_BCHW.to(dtype), torch.empty(images, device="meta")
    told = Conditioning(
        torch.empty(images, asked.tokens, network.context_dim, device="meta", dtype=dtype),
        torch.empty(images, asked.tokens, device="meta", dtype=torch.bool) if asked.masked else None,
        None if network.pooled_dim is None else torch.empty(images, network.pooled_dim, device="meta", dtype=dtype),
    )
    return lambda: (network.observe if alone else network)(x_BCHW, t_B, told, features)


def _discriminator(given: Settings) -> Discriminator:
    return Discriminator(**{**given, "inputs": [HeadInput(**read) for read in given["inputs"]]})


def _teacher(model: Settings) -> TeacherNetwork | None:
    if (declared := model.get("teacher")) is None:
        return None
    if (name := class_name(declared)) not in _TEACHERS:
        raise ValueError(f"the size of a {name} is not known here; give one of {', '.join(_TEACHERS)}")
    return _TEACHERS[name](filled(Teacher, "teacher", declared))


def _sharded(strategy: Any) -> bool:
    """Whether a trainer's strategy divides what is trained."""
    name = str(strategy["class_path"] if isinstance(strategy, dict) else strategy or "auto")
    if name.rpartition(".")[2] == "FSDP2":
        return True
    if name != "auto" and not name.startswith("ddp"):
        raise ValueError(f"trainer.strategy is {name}, which is not counted here; set --strategy ddp or fsdp2")
    return False


def _state(declared: Any) -> float:
    """Numbers that an optimizer keeps for each weight, found by a step of a small one."""
    make: Callable[[Iterable[nn.Parameter]], Optimizer] = AdamW
    if declared is not None:
        parser = ShortErrors()
        parser.add_argument("--optimizer", type=Callable[[Iterable[nn.Parameter]], Optimizer])
        make = parser.instantiate(parser.parse_object({"optimizer": declared})).optimizer
    weight = nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.zeros_like(weight)
    optimizer = make([weight])
    optimizer.step()
    state: Mapping[str, Any] = optimizer.state[weight]
    return sum(value.numel() for value in state.values() if isinstance(value, Tensor) and value.dim()) / weight.numel()


def _gathered(network: Denoiser, copies: int) -> int:
    """Numbers that a sharded network gathers: what is in no unit, and the unit at hand with the one fetched next.

    Args:
        network: the network.
        copies: of a unit; one more than two where its gradient stands beside them.
    """
    units = [_numel(unit) for unit in network.units()]
    return (copies - 1) * (_numel(network) - sum(units)) + copies * max(units)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _basis(published: bool) -> str:
    return " (published size)" if published else ""
