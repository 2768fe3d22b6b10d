"""What a device could do at most."""

import torch
from lightning.fabric.utilities.throughput import get_available_flops

# Hopper chips differ by memory and power; where Lightning's table has them at all, it counts the H200's with sparsity.
_HOPPER = {"NVIDIA H200": 989.4e12, "NVIDIA H200 NVL": 835.5e12, "NVIDIA H100 NVL": 835.5e12}


def dense_bf16_peak(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a device, by its maker's data sheet; None where it is unknown, as a CPU's is."""
    if device.type == "cuda" and (peak := _HOPPER.get(torch.cuda.get_device_name(device))):
        return peak
    return get_available_flops(device, torch.bfloat16)
