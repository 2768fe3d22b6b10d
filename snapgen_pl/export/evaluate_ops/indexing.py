"""Operations that take elements by position."""

from collections.abc import Callable

import torch
from torch import Tensor

from snapgen_pl.export.evaluate_ops.arguments import IOS17, Arguments, Function


def slice_by_index(a: Arguments) -> Tensor:
    """x[begin:end:stride] as numpy's, one of each an axis, with masks for open ends and for axes that vanish."""
    x = a.tensor("x")
    begin, end, stride = a.ints("begin"), a.ints("end"), a.ints("stride", [1] * x.ndim)
    open_begin, open_end, vanish = (a.flags(f"{mask}_mask", [False] * x.ndim) for mask in ("begin", "end", "squeeze"))
    for axis in reversed(range(x.ndim)):  # from the last, so that a vanished axis shifts none to come
        first = None if open_begin[axis] else begin[axis]
        if vanish[axis]:
            x = x.select(axis, first or 0)
            continue
        taken = range(x.shape[axis])[first : None if open_end[axis] else end[axis] : stride[axis]]
        if stride[axis] == 1:
            x = x.narrow(axis, taken.start, len(taken))
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x


def gather(a: Arguments) -> Tensor:
    """x[..., indices, ...] at an axis; the first batch_dims axes of both go together."""
    x, indices = a.tensor("x"), a.tensor("indices")
    axis, batch = a.integer("axis", 0) % x.ndim, a.integer("batch_dims", 0)
    indices = _positions(a, indices, x.shape[axis])
    return _batched(lambda one, at: _taken(one, at, axis - batch), x, indices, batch)


def _taken(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, indices.reshape(-1)).reshape(shape)


def gather_nd(a: Arguments) -> Tensor:
    """x[i, j, ...] for each last axis (i, j, ...) of indices; the first batch_dims axes of both go together."""
    x, indices, batch = a.tensor("x"), a.tensor("indices"), a.integer("batch_dims", 0)
    sizes = x.shape[batch : batch + indices.shape[-1]]
    indices = torch.stack([_positions(a, at, size) for at, size in zip(indices.unbind(-1), sizes, strict=True)], dim=-1)
    return _batched(lambda one, at: one[tuple(at.unbind(-1))], x, indices, batch)


def _positions(a: Arguments, indices: Tensor, size: int) -> Tensor:
    """Indices as positions; before iOS 17 negative ones count from the end.

    Others out of range are refused, though validate_indices may be off: what Core ML reads there is undefined.
    """
    a.ignore("validate_indices")
    positions = indices.long()
    if a.spec_version < IOS17:
        positions = torch.where(positions < 0, positions + size, positions)
    if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < size:
        raise ValueError(
            f"it reads indices {int(indices.min())} to {int(indices.max())} of {size} elements; from iOS 17 on they "
            "start at 0, so add the size to negative ones"
        )
    return positions


def _batched(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, indices: Tensor, axes: int) -> Tensor:
    """The function of each pair along the leading axes, which x and indices share."""
    if axes == 0:
        return function(x, indices)
    if x.shape[:axes] != indices.shape[:axes]:
        raise ValueError(f"batches are {tuple(x.shape[:axes])} and {tuple(indices.shape[:axes])}; export it again")
    pairs = zip(x.flatten(0, axes - 1).unbind(), indices.flatten(0, axes - 1).unbind(), strict=True)
    results = torch.stack([function(one, at) for one, at in pairs])
    return results.reshape(*x.shape[:axes], *results.shape[1:])


INDEXING: dict[str, Function] = {
    "slice_by_index": slice_by_index,
    "gather": gather,
    "gather_nd": gather_nd,
}
