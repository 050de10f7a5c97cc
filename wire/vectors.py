"""The bytes of an embedding as numbers."""

import numpy as np

FLOAT32 = np.dtype("<f4")


def vector(raw: bytes) -> np.ndarray:
    """The numbers of an embedding, float32 [dimensions]; `raw` is little-endian."""
    return np.frombuffer(raw, dtype=FLOAT32)
