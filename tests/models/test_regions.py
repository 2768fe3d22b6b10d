from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snapgen_pl.models.layers import NormSiLU, ResidualBlock, Transformer, Upsample
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.preconditioned import Preconditioned
from snapgen_pl.models.regions import _INDUCTOR, compile_regions
from snapgen_pl.models.unet import UNet
from tests.models.test_unet import inputs, small_unet


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """What Dynamo hands to a compiler; here one that runs it as it is, so that a test takes seconds."""
    torch._dynamo.reset()
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example_inputs: object) -> object:
        made.append(graph)
        return graph.forward

    compile_module = nn.Module.compile

    def compiling(self: nn.Module, dynamic: bool, options: object) -> None:
        compile_module(self, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", compiling)
    with torch._dynamo.config.patch(recompile_limit=8):
        yield made


def test_regions_do_not_overlap_and_hold_nearly_all_weights() -> None:
    with torch.device("meta"):
        net = UNet()
    regions = list(net.regions())
    inside = [parameter for region in regions for parameter in region.parameters()]
    assert len(inside) == len(set(inside))
    assert sum(weight.numel() for weight in inside) > 0.9 * sum(weight.numel() for weight in net.parameters())
    assert {type(region) for region in regions} == {ResidualBlock, Transformer, Upsample, NormSiLU}


def test_equal_regions_share_a_graph_and_say_what_the_network_says(graphs: list[torch.fx.GraphModule]) -> None:
    net, (x, t, conditioning) = small_unet(), inputs()
    expected = [net(x, time, conditioning).velocity_BCHW for time in (t, t / 2)]
    names = list(net.state_dict())
    compile_regions(net)
    for time, velocity in zip((t, t / 2), expected, strict=True):
        torch.testing.assert_close(net(x, time, conditioning).velocity_BCHW, velocity)
    kinds = {str(region) for region in net.regions()}
    assert len(graphs) == len(kinds) < len(list(net.regions()))
    compile_regions(net)  # once is enough
    net(x, t, conditioning)
    assert len(graphs) == len(kinds)
    assert list(net.state_dict()) == names


def test_gradients_are_those_of_the_network(graphs: list[torch.fx.GraphModule]) -> None:
    net, compiled, asked = small_unet(), small_unet(), inputs()
    compile_regions(compiled)
    for each in (net, compiled):
        each(*asked).velocity_BCHW.square().mean().backward()
    for wanted, made in zip(net.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(made.grad, wanted.grad)
    assert graphs


def test_torchs_own_operations_serve_passes_without_gradients_alone(graphs: list[torch.fx.GraphModule]) -> None:
    net, asked = small_unet(), inputs()
    compile_regions(net)
    own = {F.group_norm, F.interpolate}
    net(*asked)
    assert not own & called(graphs)
    with torch.no_grad():
        net(*asked)
    assert own < called(graphs)


def called(graphs: list[torch.fx.GraphModule]) -> set[object]:
    return {node.target for graph in graphs for node in graph.graph.nodes}


def test_inductor_knows_what_it_is_told() -> None:
    """It refuses options that it does not know where it is made, before anything is compiled."""
    made = torch.compile(nn.Identity(), dynamic=False, options=dict(_INDUCTOR))
    assert made is not None
    with pytest.raises(RuntimeError, match="no_option"):
        torch.compile(nn.Identity(), dynamic=False, options={"no_option": 1})


def test_more_shapes_than_dynamo_allows_a_function_are_compiled_too(graphs: list[torch.fx.GraphModule]) -> None:
    sizes = range(4, 24, 2)
    net = Preconditioned(DiT(hidden=32, depth=3, heads=4, context_dim=24), 0.5)
    compile_regions(net, shapes=len(sizes))
    for size in sizes:
        net(*inputs(size=size))
    assert len(graphs) == len(sizes) > 8
