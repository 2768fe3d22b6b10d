"""Sharding over all processes of a run: ``--trainer.strategy snapgen_pl.fsdp.FSDP2``."""

from collections.abc import Iterable

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from snapgen_pl.models.denoiser import Denoiser


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy for ``fully_shard``, over every process, with checkpoints of one file.

    A checkpoint holds whole tensors, so a run may go on with another number of processes, or with DDP.

    Args:
        process_group_backend: of torch.distributed; by default what the device asks for.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Counts the processes: Lightning's own "auto" would count machines."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(denoiser: Denoiser, others: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shards what is trained; done once however often it is called.

    Kernels lose their channels_last layout, which ``fully_shard`` does not take; activations keep theirs.

    Args:
        denoiser: unit by unit.
        others: what is trained besides, each as a whole.
        mesh: of the processes to shard over.
    """
    shard_denoiser(denoiser, mesh)
    for other in others:
        if next(other.parameters(), None) is not None and not isinstance(other, FSDPModule):
            _lay_out_plainly(other)
            fully_shard(other, mesh=mesh)


def shard_denoiser(denoiser: Denoiser, mesh: DeviceMesh, offloaded: bool = False) -> None:
    """Shards a network, unit by unit; done once however often it is called. Layouts: see :func:`shard`.

    Args:
        denoiser: also where :meth:`~snapgen_pl.models.denoiser.Denoiser.prepare` is called on its own, as samplers do.
        mesh: of the processes to shard over.
        offloaded: whether shards wait in the host's memory for their unit's turn.
    """
    if isinstance(denoiser, FSDPModule):
        return
    # Pinned memory is moved while something else is computed; there is none without a GPU.
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offloaded else OffloadPolicy()
    _lay_out_plainly(denoiser)
    for unit in denoiser.units():
        fully_shard(unit, mesh=mesh, offload_policy=policy)
    fully_shard(denoiser, mesh=mesh, offload_policy=policy)
    register_fsdp_forward_method(denoiser, "prepare")


def reshard(*modules: nn.Module) -> None:
    """Gives back what a forward gathered, where no backward will do it."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


def _lay_out_plainly(module: nn.Module) -> None:
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing from torch's stubs


def match_layouts(optimizer: Optimizer) -> None:
    """Lays the optimizer's state out in memory as its parameters are, which fused kernels take for granted.

    A sharded run's checkpoint holds plain layouts; a process that goes on from it alone has channels_last kernels.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which may be empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A shard's whole tensor, as checkpoints hold it; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
