"""What a forward pass holds in memory, found on the meta device: nothing is computed, and nothing is held.

The meta device has neither a GPU's autocast nor its fused kernels. :class:`LikeCUDA` stands in for both: it casts by
CUDA's rules, and calls operators that save for the backward pass what the fused kernels save.

Axes in names: B batch, S positions or tokens, N heads, K key/value heads, D head width.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snapgen_pl.models.denoiser import Denoiser

# Of the operators that CUDA's autocast runs in bf16, and in fp32 (ATen/autocast_mode.h), those that networks here call.
_LOWERED = {
    F.conv2d,
    F.linear,
    F.scaled_dot_product_attention,
    torch.bmm,
    torch.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.matmul,
}
_RAISED = {
    F.group_norm,
    F.layer_norm,
    F.mse_loss,
    F.rms_norm,
    F.softmax,
    F.softplus,
    torch.exp,
    torch.pow,
    torch.rsqrt,
    torch.softmax,
    torch.sum,
    Tensor.exp,
    Tensor.pow,
    Tensor.rsqrt,
    Tensor.softmax,
    Tensor.sum,
    Tensor.__pow__,
}


class Saved(NamedTuple):
    """What autograd keeps of a forward pass for the backward pass, in bytes, each storage once; weights are left out.

    Attributes:
        activations: all but the copies.
        copies: of trained weights, which autocast made in bf16.
    """

    activations: int
    copies: int


class LikeCUDA(TorchFunctionMode):
    """Calls go as on a GPU: to fused kernels and, where asked for, under autocast to bf16.

    Args:
        autocast: whether products are computed in bf16, norms in fp32.
    """

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}  # a weight and its copy, by the weight's id

    def copies(self) -> list[Tensor]:
        """Those of trained weights, which autocast caches until it ends."""
        return [copy for _, copy in self._cache.values()]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Casts what autocast would, and calls."""
        kwargs = kwargs or {}
        if self.autocast and (func in _LOWERED or func in _RAISED):
            cast = self._lowered if func in _LOWERED else _raised
            args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return _rms_norm(*args, **kwargs) if func is F.rms_norm else func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.bfloat16()
        return self._cache.setdefault(id(value), (value, value.bfloat16()))[1]


class Keeper:
    """Collects the storages that autograd keeps, while a pass runs in its context.

    Args:
        weights: parameters and buffers, which are there anyway.
        autocast: see :class:`LikeCUDA`.
    """

    def __init__(self, weights: Iterable[Tensor], autocast: bool = False) -> None:
        self._mode = LikeCUDA(autocast)
        self._weights = [weight.untyped_storage() for weight in weights]
        self._kept: dict[int, torch.UntypedStorage] = {}

    def saved(self) -> Saved:
        """What was kept so far; copies also where nothing but autocast keeps them."""
        copies = [copy.untyped_storage() for copy in self._mode.copies()]
        others = {storage._cdata for storage in (*self._weights, *copies)}
        activations = [storage.nbytes() for place, storage in self._kept.items() if place not in others]
        return Saved(sum(activations), sum(storage.nbytes() for storage in copies))

    def run(self, forward: Callable[[], object]) -> Saved:
        """What a pass keeps."""
        with self._mode, torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            forward()
        return self.saved()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage._cdata] = storage  # held, or another would come to its place
        return tensor


def saved(forward: Callable[[], object], weights: Iterable[Tensor], autocast: bool = False) -> Saved:
    """What autograd keeps of a forward pass; of one that recomputes activations, what it will compute them from.

    Args:
        forward: the pass, on the meta device.
        weights: parameters and buffers, which are there anyway.
        autocast: see :class:`LikeCUDA`.
    """
    return Keeper(weights, autocast).run(forward)


def saved_by_unit(forward: Callable[[], object], network: Denoiser, autocast: bool = False) -> list[int]:
    """The activations that each unit of a network adds to what autograd keeps, in the order of execution.

    Args:
        forward: the pass, on the meta device.
        network: it is passed through.
        autocast: see :class:`LikeCUDA`.
    """
    keeper, marks = Keeper([*network.parameters(), *network.buffers()], autocast), list[int]()

    def mark(*_: object) -> None:
        marks.append(keeper.saved().activations)

    handles = [add(mark) for unit in network.units()
               for add in (unit.register_forward_pre_hook, unit.register_forward_hook)]  # fmt: skip
    keeper.run(forward)
    for handle in handles:
        handle.remove()
    return [after - before for before, after in zip(marks[::2], marks[1::2], strict=True)]


def working_bytes(forward: Callable[[], object], weights: Iterable[Tensor], autocast: bool = False) -> int:
    """The most that a forward pass without gradients holds at once besides weights, its result included.

    Args:
        forward: the pass, on the meta device.
        weights: as in :func:`saved`.
        autocast: see :class:`LikeCUDA`.
    """
    live = _Live(weights)
    with torch.no_grad(), live, LikeCUDA(autocast):
        forward()
    return live.most


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # missing from torch's stubs
    """Follows the storages that operators make, from their first tensor to their last."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._leave, storage._cdata, storage.nbytes())

    def _leave(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _attention(
    q_BNSD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The CPU's fused attention, which the meta device knows, and which saves what GPUs' do.

    That is queries, keys, values, the mask, the output and a logarithm a query.
    """
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.empty_like(mask, dtype=q_BNSD.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BNSD, k_BKSD, v_BKSD, dropout_p, is_causal, attn_mask=mask, scale=scale
    )[0]
    return out


def _rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    out: Tensor = _FusedRMSNorm.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _FusedRMSNorm(torch.autograd.Function):
    """CUDA's: it saves its input, its gain and a number a row; elsewhere the norm is a chain of operators."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor | None) -> Tensor:
        """A tensor of the input's shape."""
        gains = () if weight is None else (weight,)
        ctx.save_for_backward(x, x.new_empty(*x.shape[:-1], 1), *gains)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tensors of the inputs' shapes."""
        x, _, *gains = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.empty_like(x), torch.empty_like(gains[0]) if gains else None
