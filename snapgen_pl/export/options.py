"""How a graph becomes a Core ML package."""

from typing import Literal, NamedTuple, TypeAlias

AttentionLayout: TypeAlias = Literal["split", "fold", "matmul", "sdpa"]
IOS: TypeAlias = Literal[16, 17, 18]
Scheme: TypeAlias = Literal["palette8", "palette6", "int8"]


# Stays in float32, and so does what is computed of it alone up to its first product with weights: in float16 its
# sinusoid would be off by 0.3 at t = 1.
ISLAND_INPUT = "timestep"


class Options(NamedTuple):
    """How a graph is lowered, and what becomes of the package.

    Attributes:
        half: whether weights, inputs and results are float16, but for the timestep's island.
        attention: how attention is laid out: heads one by one (``split``), those that share a key and value beside
            each other in one product (``fold``), as batched matrix products (``matmul``), or as one operator (``sdpa``,
            from iOS 18 on).
        target: the oldest iOS that runs the model.
        compress: how weights are compressed, see :mod:`snapgen_pl.export.compress`; None leaves them float16.
        whole: names of graphs that are not compressed.
        chunk_above: packages of more megabytes (of 10^6 bytes) are also written cut in two.
    """

    half: bool = True
    attention: AttentionLayout = "split"
    target: IOS = 17
    compress: Scheme | None = None
    whole: tuple[str, ...] = ()
    chunk_above: float = 500.0

    def changed(self) -> list[str]:
        """The names of those that are not as they are by default."""
        return [name for name, value in self._field_defaults.items() if getattr(self, name) != value]

    def check(self) -> None:
        """Raises ValueError for an attention that the target does not have, and for what would have no effect."""
        if self.attention == "sdpa" and self.target < 18:
            raise ValueError(f"attention sdpa needs iOS 18; the target is {self.target}")
        if self.whole and self.compress is None:
            raise ValueError(f"{', '.join(self.whole)} shall stay whole, but nothing is compressed; name a scheme")
        if self.chunk_above <= 0:
            raise ValueError(f"packages above {self.chunk_above:g} MB shall be cut in two; give a number above 0")
