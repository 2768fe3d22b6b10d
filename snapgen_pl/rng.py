"""Random numbers that belong to a sample, not to a process.

Philox4x32-10 (Salmon et al., SC 2011) keyed by (seed, stream) and counted by (sample, block), in integer tensor
operations: the same sample draws the same numbers on any rank, device, batch split or resumed run.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORDS = 4


class Stream(IntEnum):
    """What a number is drawn for; each purpose has its own independent stream."""

    TIMESTEP = 0
    NOISE = 1
    FLIP = 2
    CONDITION_DROPOUT = 3
    SAMPLER = 4
    LABEL = 5
    POSTERIOR = 6
    CROP = 7
    ORDER = 8
    RENOISE_TIME = 9
    RENOISE_REAL = 10
    RENOISE_FAKE = 11
    SHUFFLE = 12
    GROUP_ORDER = 13


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Philox4x32-10.

    Args:
        counter: four int64 tensors of one shape with values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        int64 tensor of that shape with a last axis of 4 more, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 x 32 -> 64 bit products wrap in int64; shifting and masking recovers both halves all the same.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _words(seed: int, stream: int, position_B: Tensor, count: int) -> Tensor:
    """(B, count) random 32-bit words."""
    blocks = -(-count // _WORDS)
    block = torch.arange(blocks, device=position_B.device).expand(len(position_B), blocks)
    position = position_B.to(torch.int64)[:, None].expand_as(block)
    zero = torch.zeros_like(block)
    # The stream shares a key word with the seed's high bits, so seeds up to 2^48 stay distinct.
    key = (seed & _MASK, ((seed >> 32) & 0xFFFF) << 16 | stream)
    words = philox((block, position & _MASK, (position >> 32) & _MASK, zero), key)
    return words.flatten(1)[:, :count]


def uniform(seed: int, stream: int, position_B: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in the open interval (0, 1).

    Args:
        seed: the run's seed, in [0, 2^48).
        stream: the purpose, a :class:`Stream` (or any integer below 2^16).
        position_B: int64 (B,), the global index of each sample.
        shape: shape of one sample's numbers.

    Returns:
        float32 (B, *shape): multiples of 2^-23, offset by half a step so that neither 0 nor 1 occurs.
    """
    words = _words(seed, stream, position_B, math.prod(shape))
    return (((words >> 9).float() + 0.5) * 2.0**-23).view(len(position_B), *shape)


def normal(seed: int, stream: int, position_B: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers by the Box-Muller transform; arguments and shape as in :func:`uniform`."""
    count = math.prod(shape)
    half = -(-count // 2)
    u = uniform(seed, stream, position_B, (2, half))
    radius, angle = torch.sqrt(-2 * torch.log(u[:, 0])), 2 * math.pi * u[:, 1]
    pairs = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
    return pairs[:, :count].view(len(position_B), *shape)
