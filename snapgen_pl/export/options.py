"""How a graph becomes a Core ML package."""

from typing import Literal, NamedTuple, TypeAlias

AttentionLayout: TypeAlias = Literal["split", "fold", "matmul", "sdpa"]
IOS: TypeAlias = Literal[16, 17, 18]


# Stays in float32, and so does what is computed of it alone up to its first product with weights: in float16 its
# sinusoid would be off by 0.3 at t = 1.
ISLAND_INPUT = "timestep"


class Options(NamedTuple):
    """How a graph is lowered.

    Attributes:
        half: whether weights, inputs and results are float16, but for the timestep's island.
        attention: how attention is laid out: heads one by one (``split``), those that share a key and value beside
            each other in one product (``fold``), as batched matrix products (``matmul``), or as one operator (``sdpa``,
            from iOS 18 on).
        target: the oldest iOS that runs the model.
    """

    half: bool = True
    attention: AttentionLayout = "split"
    target: IOS = 17

    def check(self) -> None:
        """Raises ValueError for an attention that the target does not have."""
        if self.attention == "sdpa" and self.target < 18:
            raise ValueError(f"attention sdpa needs iOS 18; the target is {self.target}")
