"""Compiling a network region by region."""

import torch

from snapgen_pl.models.denoiser import Denoiser


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
        region.compile(dynamic=False)
