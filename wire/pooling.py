"""Requests for vectors instead of text."""

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

GENERATE, EMBED = "generate", "embed"
"""What a model is served for (ModelCard.task), in vLLM's words."""

FLOAT32 = np.dtype("<f4")


class Pooling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks for one vector of unit length of the whole prompt, with so many `dimensions`.

    None is all that the model has; fewer can be had of models that were trained for it.
    """

    dimensions: Annotated[int, Meta(ge=1)] | None = None


def vector(raw: bytes) -> np.ndarray:
    """The numbers of an embedding, float32 [dimensions]; `raw` is little-endian."""
    return np.frombuffer(raw, dtype=FLOAT32)
