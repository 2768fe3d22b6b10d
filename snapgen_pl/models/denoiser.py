"""The contract of every network that predicts a velocity: the UNet, the table's peers, and teachers.

Time runs from data to noise: t = 0 is data, t = 1 is noise. Tensor names carry their axes: B batch, C channels,
H height, W width, S context tokens, D context width, P pooled width, E embedding width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

VELOCITY = "velocity"  # the name of a network's last output


class Conditioning(NamedTuple):
    """What a denoiser is told besides the latent and the time.

    Attributes:
        tokens_BSD: context tokens for cross-attention (or, for networks without it, to be pooled).
        mask_BS: bool, True where a token may be attended to; None means everywhere. At least one per row.
        pooled_BP: one vector a sample, for networks that take it through their time embedding.
    """

    tokens_BSD: Tensor
    mask_BS: Tensor | None = None
    pooled_BP: Tensor | None = None

    def summary(self) -> Tensor:
        """All of it as one vector a sample: the pooled one, or the mean of the tokens that may be attended to."""
        if self.pooled_BP is not None:
            return self.pooled_BP
        if self.mask_BS is None:
            return self.tokens_BSD.mean(dim=1)
        kept_BS1 = self.mask_BS[..., None].to(self.tokens_BSD.dtype)
        return (self.tokens_BSD * kept_BS1).sum(dim=1) / kept_BS1.sum(dim=1)


class PreparedConditioning(NamedTuple):
    """The part of a forward pass that depends on neither x nor t; a sampler pays it once a prompt.

    Attributes:
        keys: one tensor a cross-attention layer in the order of execution, (B, key/value heads, S, head width).
        values: like ``keys``.
        mask_BS: as in :class:`Conditioning`.
        embedding_BE: what is added to the time embedding; None where the network takes no pooled vector.
        tokens_BSE: context tokens as the network takes them in; None where it takes keys and values.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    mask_BS: Tensor | None = None
    embedding_BE: Tensor | None = None
    tokens_BSE: Tensor | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "PreparedConditioning":
        """Each tensor changed alike."""

        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return PreparedConditioning(
            tuple(change(key) for key in self.keys),
            tuple(change(value) for value in self.values),
            optional(self.mask_BS),
            optional(self.embedding_BE),
            optional(self.tokens_BSE),
        )


class DenoiserOutput(NamedTuple):
    """A velocity and the features that were asked for.

    Attributes:
        velocity_BCHW: the prediction of noise - data.
        features: one (B, C', H', W') tensor a requested name, in the order of the request.
    """

    velocity_BCHW: Tensor
    features: tuple[Tensor, ...] = ()


class Denoiser(nn.Module, ABC):
    """A network v(x, t, conditioning), interchangeable by ``class_path``.

    Subclasses say what it computes on its way, in :meth:`outputs`; how far it goes is decided here.

    Attributes:
        in_channels: channels of the latent it reads and writes.
        context_dim: width D of the context tokens.
        pooled_dim: width P of the pooled vector; None where it takes none.
        feature_channels: channels of each feature that may be asked for, by name, in the order of execution.
        feature_strides: by the same names, latent positions that a feature's position covers along one side.
    """

    in_channels: int
    context_dim: int
    pooled_dim: int | None = None
    feature_channels: Mapping[str, int] = {}
    feature_strides: Mapping[str, int] = {}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names that ``features`` may hold."""
        return tuple(self.feature_channels)

    def units(self) -> Iterator[nn.Module]:
        """The repeated parts, outermost only: the elements of its module lists. They are sharded one by one."""
        lists = [child for child in self.children() if isinstance(child, nn.ModuleList)]
        while lists:
            for element in lists.pop():
                if isinstance(element, nn.ModuleList):
                    lists.append(element)
                else:
                    yield element

    def regions(self) -> Iterator[nn.Module]:
        """The parts that are compiled one by one: the units, where a network does not say otherwise."""
        return self.units()

    def check_features(self, features: tuple[str, ...]) -> None:
        """Raises ValueError for a name that is none of ``feature_names``."""
        if unknown := [name for name in features if name not in self.feature_names]:
            raise ValueError(f"unknown features {unknown}; {type(self).__name__} has {list(self.feature_names)}")

    def check_sides(self, name: str, sides: Sequence[int], downsampling: int) -> None:
        """Refuses images that do not divide into latents, or into the network's grids.

        Args:
            name: what the sides are of.
            sides: in pixels.
            downsampling: the autoencoder's: pixels that a latent position covers along one side.

        Raises:
            ValueError: naming what sides must be multiples of.
        """
        multiple = downsampling * max(self.feature_strides.values(), default=1)
        if any(side < 1 or side % multiple for side in sides):
            raise ValueError(f"{name} {'x'.join(map(str, sides))} is of no multiples of {multiple} pixels, which the "
                             "autoencoder and the denoiser take together")  # fmt: skip

    def prepared(self, conditioning: Conditioning | PreparedConditioning) -> PreparedConditioning:
        """The conditioning prepared, if it is not yet."""
        return self.prepare(conditioning) if isinstance(conditioning, Conditioning) else conditioning

    def refuse_pooled(self, conditioning: Conditioning) -> None:
        """Raises ValueError for a pooled vector, in networks that take none."""
        if conditioning.pooled_BP is not None:
            raise ValueError(f"{type(self).__name__} takes no pooled vector; give it tokens alone")

    @abstractmethod
    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """Computes what depends on the conditioning alone."""

    @abstractmethod
    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """Computes the network up to one output after the other: its features by name, and last ``VELOCITY``.

        Args:
            x_BCHW: as in :meth:`forward`.
            t_B: as in :meth:`forward`.
            conditioning: made by :meth:`prepare`.
        """

    def forward(
        self,
        x_BCHW: Tensor,
        t_B: Tensor,
        conditioning: Conditioning | PreparedConditioning,
        features: tuple[str, ...] = (),
    ) -> DenoiserOutput:
        """Predicts the velocity noise - data.

        Args:
            x_BCHW: the noisy latent x_t.
            t_B: times in [0, 1]; 1 is noise.
            conditioning: raw, or prepared once and used for many steps.
            features: names out of ``feature_names``, a tuple fixed for a run.

        Raises:
            ValueError: for an unknown feature, or inputs that the network does not take.
        """
        self.check_features(features)
        *seen, velocity_BCHW = self._compute((*features, VELOCITY), x_BCHW, t_B, conditioning)
        return DenoiserOutput(velocity_BCHW, tuple(seen))

    def observe(
        self,
        x_BCHW: Tensor,
        t_B: Tensor,
        conditioning: Conditioning | PreparedConditioning,
        features: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        """The features of :meth:`forward` alone: what comes after the last of them is not computed.

        Args:
            x_BCHW: as in :meth:`forward`.
            t_B: as in :meth:`forward`.
            conditioning: as in :meth:`forward`.
            features: as in :meth:`forward`.

        Raises:
            ValueError: as :meth:`forward`.
        """
        self.check_features(features)
        return self._compute(features, x_BCHW, t_B, conditioning)

    def _compute(
        self,
        names: tuple[str, ...],
        x_BCHW: Tensor,
        t_B: Tensor,
        conditioning: Conditioning | PreparedConditioning,
    ) -> tuple[Tensor, ...]:
        """The outputs of these names, in their order."""
        found: dict[str, Tensor] = {}
        for name, output in self.outputs(x_BCHW, t_B, self.prepared(conditioning)):
            if name in names:
                found[name] = output
            if len(found) == len(set(names)):
                break
        return tuple(found[name] for name in names)
