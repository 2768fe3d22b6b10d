"""Operations on each element: arithmetic, comparisons, activations, types."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda a: function(a.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda a: function(a.tensor("x"), a.tensor("y"))


def log(a: Arguments) -> Tensor:
    """log(x + epsilon)."""
    return (a.tensor("x") + a.epsilon(1e-45)).log()


def rsqrt(a: Arguments) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return 1 / (a.tensor("x") + a.epsilon(1e-12)).sqrt()


def inverse(a: Arguments) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (a.tensor("x") + a.epsilon(1e-4))


def gelu(a: Arguments) -> Tensor:
    """x times the normal distribution, exact or by one of two approximations."""
    x, mode = a.tensor("x"), a.text("mode", "EXACT")
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"its mode '{mode}' is unknown; export the package again")


def select(a: Arguments) -> Tensor:
    """a where cond, b elsewhere."""
    return torch.where(a.tensor("cond"), a.tensor("a"), a.tensor("b"))


def cast(a: Arguments) -> Tensor:
    """To another type: towards zero where that is an integer, x != 0 where it is a boolean."""
    x, dtype = a.tensor("x"), a.text("dtype")
    if dtype == "bool":
        return x != 0
    if dtype in ("fp16", "fp32"):
        return x.float()
    if dtype in ("int8", "uint8", "int16", "uint16", "int32"):
        return x.trunc() if x.is_floating_point() else x
    raise ValueError(f"its dtype '{dtype}' is unknown; export the package again")


ELEMENTWISE: dict[str, Function] = {
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(torch.true_divide),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "logical_not": _unary(torch.logical_not),
    "abs": _unary(torch.abs),
    "exp": _unary(torch.exp),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "tanh": _unary(torch.tanh),
    "erf": _unary(torch.erf),
    "sign": _unary(torch.sign),
    "floor": _unary(torch.floor),
    "ceil": _unary(torch.ceil),
    "round": _unary(torch.round),  # halves to even
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(lambda x: x * torch.sigmoid(x)),
    "relu": _unary(torch.relu),
    "softplus": _unary(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "identity": _unary(lambda x: x),
    "log": log,
    "rsqrt": rsqrt,
    "inverse": inverse,
    "gelu": gelu,
    "select": select,
    "cast": cast,
}
