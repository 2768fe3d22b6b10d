"""Between sequences of patches and grids, for the transformers among the peers.

Axes in names: B batch, S patches in rows, E hidden width, C channels, H and W height and width.
"""

from torch import Tensor


def to_grid(x_BSE: Tensor, height: int, width: int) -> Tensor:
    """One position a patch: (B, height * width, E) -> (B, E, height, width)."""
    return x_BSE.transpose(1, 2).reshape(len(x_BSE), -1, height, width)


def unpatch(patches_BSE: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Lays patches out as an image, channels fastest within each.

    Args:
        patches_BSE: (B, height * width, patch * patch * C).
        height: patches along a column.
        width: patches along a row.
        patch: height and width of a patch.

    Returns:
        (B, C, height * patch, width * patch).
    """
    grid = patches_BSE.reshape(len(patches_BSE), height, width, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(len(patches_BSE), -1, height * patch, width * patch)
