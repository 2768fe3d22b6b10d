"""Normalisations and reductions; all their sums are fp32 ones."""

from collections.abc import Callable

from torch import Tensor

from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function


def instance_norm(a: Arguments) -> Tensor:
    """Each channel of each sample to mean 0 and variance 1, then an affine map a channel."""
    x = a.tensor("x")
    normal = _normal(x, list(range(2, x.ndim)), a.epsilon(1e-5))
    return _affine(a, normal, (-1, *[1] * (x.ndim - 2)))


def layer_norm(a: Arguments) -> Tensor:
    """To mean 0 and variance 1 over axes, then an affine map a position on them."""
    x = a.tensor("x")
    axes = [axis % x.ndim for axis in a.ints("axes", range(x.ndim))]
    if axes != sorted(axes):
        raise ValueError(f"its axes {axes} do not ascend; export the package again")
    shape = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
    return _affine(a, _normal(x, axes, a.epsilon(1e-5)), shape)


def _normal(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred / (centred.square().mean(dim=axes, keepdim=True) + epsilon).sqrt()


def _affine(a: Arguments, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    gamma, beta = a.optional("gamma"), a.optional("beta")
    if gamma is not None:
        x = x * gamma.view(shape)
    return x if beta is None else x + beta.view(shape)


def softmax(a: Arguments) -> Tensor:
    """exp(x) / sum exp(x) along an axis."""
    return a.tensor("x").softmax(dim=a.integer("axis", -1))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    """Over ``axes``, all by default."""

    def reduce(a: Arguments) -> Tensor:
        x = a.tensor("x")
        return function(x, a.ints("axes", range(x.ndim)), a.flag("keep_dims", False))

    return reduce


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in axes:
        x = x.prod(dim=axis, keepdim=True)
    return x if keep else x.squeeze(axes)


def argmax(a: Arguments) -> Tensor:
    """The position of the largest along an axis."""
    a.ignore("output_dtype")  # the declared type of the result says the same
    return a.tensor("x").argmax(a.integer("axis", -1), a.flag("keep_dims", False))


def _real(x: Tensor) -> Tensor:
    """Integers in fp64, for results that need not be integers."""
    return x if x.is_floating_point() else x.double()


REDUCTIONS: dict[str, Function] = {
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "softmax": softmax,
    "reduce_sum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_mean": _reduction(lambda x, axes, keep: _real(x).mean(axes, keep)),
    "reduce_max": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _reduction(_product),
    "reduce_l2_norm": _reduction(lambda x, axes, keep: _real(x).square().sum(axes, keep).sqrt()),
    "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "reduce_argmax": argmax,
}
