"""Embeddings between our types and vLLM's."""

from typing import Any

import numpy as np

from wire.pooling import Pooling
from wire.tokens import FinishReason, TokenDelta
from wire.vectors import FLOAT32


def pooling_params(pooling: Pooling) -> Any:
    """Return vLLM's PoolingParams for one vector of unit length."""
    from vllm import PoolingParams

    # Without a task it would be a vector for each token.
    return PoolingParams(task="embed", dimensions=pooling.dimensions)


def embedding_delta(output: Any) -> TokenDelta:
    """Return vLLM's PoolingRequestOutput as the one delta of its request."""
    values = np.asarray(output.outputs.data, dtype=FLOAT32)
    return TokenDelta(
        finish_reason=FinishReason.STOP,
        embedding=values.tobytes(),
        cached_tokens=output.num_cached_tokens or 0,
    )
