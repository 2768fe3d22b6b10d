"""torch-fidelity for tests, and weights for its Inception.

The CPU's torch has no operators of torchvision, which then does not import unless they are declared first; and
lightning, torchmetrics, transformers and diffusers break, or behave otherwise, where they find it. So `make install`
puts both packages into a folder of their own; they are imported from it without anyone else finding torchvision.
"""

import importlib
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(sys.prefix) / "fid"
_operators: list[torch.library.Library] = []  # an operator is gone with the Library that declared it


def torch_fidelity() -> ModuleType:
    """The installed package, else that of the folder; the test is skipped where there is neither."""
    try:
        return importlib.import_module("torch_fidelity")
    except ModuleNotFoundError:
        if not FOLDER.is_dir():
            pytest.skip(f"torch-fidelity is neither installed nor in {FOLDER}: run `make install`")
    _declare_operators()
    sys.path.append(str(FOLDER))
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        sys.path.remove(str(FOLDER))  # it also holds a package called tests
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # torch_fidelity holds what it uses


def random_weights(file: Path, image_BCHW: Tensor) -> Path:
    """Writes weights under the Inception's own names, random but for batch norms fitted to some images.

    Without the fit, random layers of this depth make all images alike.
    """
    network = _bare_inception()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the images' own statistics
    network.train()(image_BCHW)
    network.fc.weight *= 4  # type: ignore[operator]
    torch.save(network.state_dict(), file)
    return file


def _bare_inception() -> nn.Module:
    class Bare(torch_fidelity().FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *args: object, **kwargs: object) -> None:
            """Keeps what it was initialised with."""

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        bare: nn.Module = Bare("bare", ["2048"], feature_extractor_weights_path=empty)
    return bare


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)
