"""The types that frozen networks compute in."""

from typing import Literal, TypeAlias

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]
