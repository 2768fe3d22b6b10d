"""coremltools' own route from torch, for :mod:`benchmarks.export` to run beside ours.

A process of its own, for this route breaks with numpy 2.4: ``pip install --target FOLDER "numpy<2.4"`` makes a folder
that is put before the others.
"""

import time
from pathlib import Path

import coremltools as ct
import torch
from jsonargparse import auto_cli

from benchmarks.export_graph import Precision, Size, denoiser_graph


def main(size: Size, precision: Precision, out: Path) -> None:
    """Converts a denoiser through ``torch.export``, and saves it.

    Args:
        size: of the network.
        precision: of the package.
        out: its path.
    """
    graph = denoiser_graph(size)
    start = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(graph.module, tuple(graph.inputs.values())).run_decompositions({})
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=getattr(ct.precision, precision),
        skip_model_load=True,
    )
    model.save(str(out))
    print(f"{time.perf_counter() - start:.1f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
