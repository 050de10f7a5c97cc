"""Requests for vectors instead of text."""

from typing import Annotated

import msgspec
from msgspec import Meta

GENERATE, EMBED = "generate", "embed"
"""What a model is served for (ModelCard.task), in vLLM's words."""


class Pooling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks for one vector of unit length of the whole prompt, with so many `dimensions`.

    None is all that the model has; fewer can be had of models that were trained for it.
    """

    dimensions: Annotated[int, Meta(ge=1)] | None = None
