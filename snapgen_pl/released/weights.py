"""Weights in files of others: read without running what they hold, and given to a network whole."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_SHOWN = 5


def read_weights(path: str, inside: str) -> dict[str, Tensor]:
    """The floating-point tensors of a checkpoint by name, in fp32 and in the host's memory.

    Args:
        path: a file of ``torch.save``, or of safetensors where its name ends so.
        inside: the key that the tensors lie under, where the file holds more than them.

    Raises:
        ValueError: where there is no such file, or it is damaged or holds anything but tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file {path}; give the released checkpoint, downloaded")
    content = _loaded(file)
    if isinstance(content, dict) and isinstance(content.get(inside), dict):
        content = content[inside]
    if not _is_tensors(content):
        raise ValueError(f"{path} holds no table of tensors, neither as it is nor under {inside!r}")
    # Copied out of the map: whoever replaces the file must not change a network that runs.
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in content.items() if tensor.is_floating_point()}


def fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    file: str,
    remedy: str = "set the sizes to those of the released network",
) -> None:
    """Gives a network its weights; those of the file are to be all of the network's, and nothing else.

    Args:
        network: may lie on the meta device; it is given the tensors themselves.
        tensors: of the file.
        names: the file's name of each of the network's weights.
        file: for messages.
        remedy: likewise.

    Raises:
        ValueError: naming what is missing, foreign or misshapen.
    """
    wanted = network.state_dict()
    assert wanted.keys() == names.keys(), wanted.keys() ^ names.keys()
    common = [(ours, theirs) for ours, theirs in names.items() if theirs in tensors]
    misshapen = [
        f"{theirs} {tuple(tensors[theirs].shape)} instead of {tuple(wanted[ours].shape)}"
        for ours, theirs in common
        if tensors[theirs].shape != wanted[ours].shape
    ]
    wrong = {
        "missing": set(names.values()) - tensors.keys(),
        "foreign": tensors.keys() - set(names.values()),
        "misshapen": misshapen,
    }
    if any(wrong.values()):
        said = "; ".join(f"{kind}: {_listed(found)}" for kind, found in wrong.items() if found)
        raise ValueError(f"{file} is not this network's: {said}; {remedy}")
    network.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, assign=True)
    network.eval().requires_grad_(False)


def _loaded(file: Path) -> object:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # mmap: what is not used is not read. Files older than torch 1.6 are no archives, and cannot be mapped.
        content: object = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except Exception as error:  # unpicklers, archives and maps each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{file} cannot be read as tensors alone ({reason}); if you trust it, load it where it came from, write "
            "its tensors by safetensors.torch.save_file, and give that file"
        ) from error
    return content


def _is_tensors(content: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
