"""Operations that take or mark elements by position."""

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


def slice_by_size(a: Arguments) -> Tensor:
    """size elements from begin on, one of each an axis; -1 takes all that are left."""
    x = a.tensor("x")
    for axis, (begin, size) in enumerate(zip(a.ints("begin"), a.ints("size"), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
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


def gather_along_axis(a: Arguments) -> Tensor:
    """Along an axis, the element that indices name at each place."""
    x, axis = a.tensor("x"), a.integer("axis", 0)
    return x.take_along_dim(_positions(a, a.tensor("indices"), x.shape[axis]), axis)


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


def one_hot(a: Arguments) -> Tensor:
    """on_value where a new axis counts the index, off_value elsewhere."""
    indices, axis = a.tensor("indices"), a.integer("axis", -1)
    axis %= indices.ndim + 1
    counts = torch.arange(a.integer("one_hot_vector_size")).view(-1, *[1] * (indices.ndim - axis))
    on, off = (a.tensor(name) if a.has(name) else None for name in ("on_value", "off_value"))
    return torch.where(
        indices.unsqueeze(axis) == counts,
        torch.ones((), dtype=torch.int32) if on is None else on.reshape(()),
        torch.zeros((), dtype=torch.int32) if off is None else off.reshape(()),
    )


def band_part(a: Arguments) -> Tensor:
    """Zero outside a band around the diagonal of the last two axes; a negative width keeps that whole side."""
    x, lower, upper = a.tensor("x"), a.integer("lower", -1), a.integer("upper", -1)
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    kept = ((below <= lower) | (lower < 0)) & ((-below <= upper) | (upper < 0))
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


def cumsum(a: Arguments) -> Tensor:
    """Sums of all elements up to each, along an axis; exclusive ones leave out the element itself."""
    x, axis = a.tensor("x"), a.integer("axis", 0)
    reverse, exclusive = a.flag("reverse", False), a.flag("exclusive", False)
    x = x.flip(axis) if reverse else x
    sums = x.cumsum(axis, dtype=x.dtype)
    if exclusive:
        zero = torch.zeros_like(sums.narrow(axis, 0, 1))
        sums = torch.cat([zero, sums.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return sums.flip(axis) if reverse else sums


INDEXING: dict[str, Function] = {
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "one_hot": one_hot,
    "band_part": band_part,
    "cumsum": cumsum,
}
