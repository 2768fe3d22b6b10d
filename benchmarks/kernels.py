"""Where a GPU's time goes: kernels by the class of what they compute."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # missing from __all__
from torch.profiler import ProfilerActivity, profile

KernelClass = Literal[
    "depthwise convolutions", "convolutions", "attention", "matrix products", "norms", "optimizer", "copies",
    "fused norms and reductions", "fused pointwise", "pointwise", "other",
]  # fmt: skip
# Parts of kernels' names, in lower case; the first class with one of them wins.
_MARKS: dict[KernelClass, tuple[str, ...]] = {
    "fused norms and reductions": ("triton_red_", "triton_per_", "triton_mix_"),
    "fused pointwise": ("triton_poi_", "triton_for_"),
    "attention": ("flash", "fmha", "attention", "softmax"),
    "depthwise convolutions": ("depthwise", "c1_k1", "grouped_direct", "conv2d_grouped"),
    "optimizer": ("multi_tensor_apply", "fusedadam"),
    "convolutions": ("fprop", "dgrad", "wgrad", "conv", "implicit", "winograd"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
    "norms": ("norm", "rowwisemoments", "gammabeta", "internalgradients", "fusedparams"),
    "copies": ("copy", "memcpy", "memset", "transpose", "nchwtonhwc", "nhwctonchw", "catarray"),
    "pointwise": ("elementwise", "upsample", "reduce_kernel"),
    "other": ("",),
}
_SHOWN = 25


@dataclass(frozen=True)
class Kernel:
    """One kernel's part in a step.

    Attributes:
        name: as the profiler has it, cut at 160 characters.
        kind: the class of what it computes.
        calls: a step.
        milliseconds: a step.
    """

    name: str
    kind: KernelClass
    calls: float
    milliseconds: float


@dataclass(frozen=True)
class Breakdown:
    """A step's kernels.

    Attributes:
        milliseconds: of a step, by class, longest first.
        longest: the kernels that take most, longest first.
    """

    milliseconds: dict[KernelClass, float]
    longest: list[Kernel]


def kind_of(name: str) -> KernelClass:
    """The class of a kernel, by its name."""
    lowered = name.lower()
    return next(kind for kind, marks in _MARKS.items() if any(mark in lowered for mark in marks))


def breakdown(step: Callable[[], None], steps: int = 2) -> Breakdown:
    """Profiles a step that has warmed up.

    Args:
        step: what is profiled, on the current CUDA device.
        steps: how often.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    named = ((event.name, event.self_device_time_total / 1e3) for event in events if not event.is_user_annotation)
    return summed(named, steps)


def summed(kernels: Iterable[tuple[str, float]], steps: int) -> Breakdown:
    """Adds up calls of kernels.

    Args:
        kernels: name and milliseconds of each call.
        steps: that they belong to.
    """
    calls: Counter[str] = Counter()
    milliseconds: Counter[str] = Counter()
    for name, spent in kernels:
        calls[name] += 1
        milliseconds[name] += spent / steps  # type: ignore[assignment]  # Counter's stubs know integers alone
    by_kind = dict.fromkeys(get_args(KernelClass), 0.0)
    for name, spent in milliseconds.items():
        by_kind[kind_of(name)] += spent
    longest = [
        Kernel(name[:160], kind_of(name), calls[name] / steps, spent)
        for name, spent in milliseconds.most_common(_SHOWN)
    ]
    ordered = sorted(((kind, spent) for kind, spent in by_kind.items() if spent), key=lambda each: -each[1])
    return Breakdown(dict(ordered), longest)
