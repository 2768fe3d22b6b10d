import torch
from torch import nn
from torch.nn import functional as F

from snapgen_pl.export.example import example_of
from snapgen_pl.export.graphs import Graph


def test_norms_of_large_maps_are_as_accurate_as_float32_can_be() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4)
    x = (torch.randn(1, 4, 1024, 1024) * 0.3 + 0.5).contiguous(memory_format=torch.channels_last)
    exact = F.group_norm(x.double(), 2, eps=norm.eps)
    found = example_of(Graph("norm", norm, {"x": x}, ("y",))).expected["y"]
    assert float((found - exact).norm() / exact.norm()) < 1e-6
