"""Compiling a network region by region."""

import torch

from snapgen_pl.models.denoiser import Denoiser

# Inductor would not keep a backward pass in channels_last, for it looks for convolutions' forward passes alone; and it
# writes down pointwise work with many inputs where several read it. In the gradient of a GroupNorm that is a map in
# fp32, written once and read three times, beside two in bf16 from which it is computed again. Above 8 it would add up a
# transformer's branches anew for each norm, where no gradients are wanted.
_INDUCTOR = {
    "force_layout_optimization": True,
    "realize_reads_threshold": 8,
    "realize_acc_reads_threshold": 64,
    "realize_opcount_threshold": 1000,
}


def compile_regions(denoiser: Denoiser, shapes: int = 1) -> None:
    """Compiles a denoiser in place, each region by itself; regions that are equal but for their weights share a graph.

    One graph of the whole would fuse little more, since norms and pointwise work lie within regions, and takes several
    times as long to make. Done once however often it is called.

    Args:
        denoiser: keeps its parameters' names, and its weights may be sharded by unit.
        shapes: of batches that it will see: sizes of images times sizes of batches, in training and in validation.
    """
    regions = [region for region in denoiser.regions() if region._compiled_call_impl is None]
    # Beyond its limit of graphs for one function, torch.compile would run what comes next as it is, in silence.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, shapes * len(regions))
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, config.recompile_limit)
    for region in regions:
        region.compile(dynamic=False, options=_INDUCTOR)
