"""Sharding over all processes of a run: ``--trainer.strategy snapgen_pl.fsdp.FSDP2``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from snapgen_pl.checkpoints import read
from snapgen_pl.models.denoiser import Denoiser


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy for ``fully_shard``, over every process, with checkpoints of one file.

    A checkpoint holds what one process would write: whole tensors, and each optimizer's by its own places. So a run may
    go on with another number of processes, or with DDP. Lightning counts places over the whole module instead, which
    only one optimizer can do, and steps an optimizer that has not begun to find out what it keeps.

    Args:
        process_group_backend: of torch.distributed; by default what the device asks for.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether optimizers are handed their states apart from the weights."""
        return True

    def setup_environment(self) -> None:
        """Counts the processes: Lightning's own "auto" would count machines."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the first process writes of an optimizer, in the host's memory; every process must ask."""
        saved = _plain(optimizer).state_dict()
        # One tensor at a time, in the order that all processes share.
        state = {
            place: {name: self._kept(value) for name, value in values.items()}
            for place, values in saved["state"].items()
        }
        return {**saved, "state": state} if self.is_global_zero else {}

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        gathered = whole(value)
        return gathered.cpu() if self.is_global_zero else None

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, and takes the weights up.

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: as :func:`snapgen_pl.checkpoints.read`; where ``weights_only`` is False.
        """
        if weights_only is False:
            raise ValueError("checkpoints hold tensors and plain values only: leave weights_only out")
        # In the file's map: each process takes its own part, not the whole, into memory.
        checkpoint = read(Path(checkpoint_path))
        assert self.model is not None
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes up the states of all optimizers."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                place: {name: _divided(value, weights[place]) for name, value in values.items()}
                for place, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _plain(optimizer: Optimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _divided(value: Any, weight: Tensor) -> Any:
    """What an optimizer keeps for a weight: counts as they are, tensors of the weight's shape cut as it is."""
    return cut_like(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a network that is trained; done once however often it is called.

    Kernels lose their channels_last layout, which ``fully_shard`` does not take; activations keep theirs.

    Args:
        module: a denoiser is sharded unit by unit, another network as a whole, one without weights not at all.
        mesh: of the processes to shard over.
    """
    if isinstance(module, Denoiser):
        shard_denoiser(module, mesh)
    elif next(module.parameters(), None) is not None and not isinstance(module, FSDPModule):
        _lay_out_plainly(module)
        fully_shard(module, mesh=mesh)


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
    for method in ("prepare", "observe"):
        register_fsdp_forward_method(denoiser, method)


def reshard(*modules: nn.Module) -> None:
    """Gives back what a forward gathered, where no backward will do it: a later one would not gather anew."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


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


def cut_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor on a weight's device, cut as the weight is; every process must ask, with the same tensor."""
    tensor = tensor.to(weight.device)
    return distribute_tensor(tensor, weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A shard's whole tensor, as checkpoints hold it; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
