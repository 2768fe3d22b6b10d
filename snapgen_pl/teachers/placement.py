"""Where the weights of a frozen network lie while it computes."""

from typing import Literal

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from snapgen_pl.fsdp import shard_denoiser
from snapgen_pl.models.denoiser import Denoiser

# replicated: whole on each process's device. sharded: a part on each process's device, which gather a block when it is
# that block's turn. offloaded: likewise, but the parts wait in the host's memory; a single process holds all there.
Placement = Literal["replicated", "sharded", "offloaded"]


def place(denoiser: Denoiser, placement: Placement, device: torch.device, mesh: DeviceMesh | None) -> None:
    """Puts a network's weights in their place; where they are divided, once however often it is called.

    Args:
        denoiser: with its weights, frozen.
        placement: which place.
        device: where it computes.
        mesh: of the processes to divide weights among; None takes all of them, as DDP has no mesh.

    Raises:
        ValueError: where there is no group of processes to divide weights among.
    """
    if placement == "replicated":
        denoiser.to(device)
    else:
        shard_denoiser(denoiser, mesh or _all_processes(placement, device), offloaded=placement == "offloaded")


def _all_processes(placement: Placement, device: torch.device) -> DeviceMesh:
    if not distributed.is_initialized():
        raise ValueError(
            f"the teacher's placement is {placement}, which torch does for a group of processes; set "
            "--trainer.strategy ddp, which makes one of a single process too, or placement replicated"
        )
    return init_device_mesh(device.type, (distributed.get_world_size(),))
