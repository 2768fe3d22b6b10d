"""Matrix products and attention."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function


def linear(a: Arguments) -> Tensor:
    """x weight^T + bias."""
    return F.linear(a.tensor("x"), a.tensor("weight"), a.optional("bias"))


def matmul(a: Arguments) -> Tensor:
    """x y over the last two axes, the others broadcast; a vector has nothing to transpose."""
    x, y = a.tensor("x"), a.tensor("y")
    if a.flag("transpose_x", False) and x.ndim > 1:
        x = x.mT
    if a.flag("transpose_y", False) and y.ndim > 1:
        y = y.mT
    return torch.matmul(x, y)


def einsum(a: Arguments) -> Tensor:
    """Products summed over the letters that the result lacks; axes of size 1 broadcast, except for summed ones."""
    values, equation = a.tensors("values"), a.text("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    letters = left.split(",")
    for letter in sorted(set(left) - {","} - set(right)):
        sizes = {
            value.shape[axis]
            for axes, value in zip(letters, values, strict=True)
            for axis in range(len(axes))
            if axes[axis] == letter
        }
        if len(sizes) != 1:
            raise ValueError(
                f"'{equation}' sums over '{letter}' of the sizes {sorted(sizes)}; export the package again"
            )
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(a: Arguments) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask says which keys take part."""
    query, mask = a.tensor("query"), a.optional("attn_mask")
    scores = query @ a.tensor("key").mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ a.tensor("value")


PRODUCTS: dict[str, Function] = {
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
