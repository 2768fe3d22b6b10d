"""Networks and tokenizers of transformers, read from a folder without running what it holds."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from snapgen_pl.asked_size import check_size_by_files
from snapgen_pl.terminal import errors_alone

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_network(
    kind: "type[PreTrainedModel]", folder: Path, dtype: torch.dtype, settings: Mapping[str, Any]
) -> "tuple[PreTrainedModel, set[str]]":
    """A network, frozen, in eval mode and on the CPU; and the names of its weights that the folder lacks.

    Args:
        kind: its class.
        folder: holds config.json and safetensors.
        dtype: what it is to compute in.
        settings: what its configuration is to say in place of what the file says.

    Raises:
        ValueError: if the files are damaged, or the configuration asks for more than its weights fill.
    """
    check_transformers_size(kind, folder, settings)
    try:
        # Weights that are missing are drawn first: the global generator is left alone. Those that are not needed,
        # as hundreds of a whole CLIP's, transformers would list.
        with errors_alone("transformers"), torch.random.fork_rng(devices=[]):
            loaded: Any = kind.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # safetensors and transformers have their own errors for damaged files
        raise _damaged(folder, error) from error
    network, report = loaded
    return network.eval().requires_grad_(False), set(report["missing_keys"])


def check_transformers_size(kind: Any, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a network of transformers that is larger than the weights in its folder.

    Args:
        kind: its class.
        folder: holds config.json and safetensors.
        settings: as in :func:`read_network`.

    Raises:
        ValueError: where it is too large, naming config.json.
    """
    check_size_by_files(
        lambda: kind(kind.config_class.from_pretrained(folder, local_files_only=True, **settings)),
        folder / "config.json",
    )


def read_tokenizer(kind: "type[PreTrainedTokenizerBase]", folder: Path) -> "PreTrainedTokenizerBase":
    """A tokenizer from its files.

    Raises:
        ValueError: if they are damaged.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers and transformers have their own errors for damaged files
        raise _damaged(folder, error) from error
    return tokenizer


def lacking(folder: Path, missing: Collection[str]) -> str:
    """What to tell whoever gave a folder whose weights are not all there."""
    return (
        f"{folder} lacks {len(missing)} weights, such as {min(missing)}: those there are another network's; "
        "download them again"
    )


def _damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder} cannot be loaded ({error}); download its files again")
