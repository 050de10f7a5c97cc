"""What it costs to send a request to a place, and which place is taken.

In blocks, as NVIDIA Dynamo's KV router does (its public documentation, "KV cache routing"):

    cost = overlap_weight * (prefill + uncached) + active

`prefill` are the prompts on the way there that are not computed yet, `uncached` is this prompt
without what the place holds of it, and `active` what would be in use there with this request among
the others (router/load.py). What running requests have in common with this prompt costs nothing:
blocks that they use come on top of nothing, and of blocks that they have yet to compute this one
makes no more work. So equal prompts that come together meet on one place, until what else they
bring there weighs more than a second computation elsewhere.

At temperature T > 0 place i is taken with the probability

    p[i] = exp(-c[i] / T) / sum over j of exp(-c[j] / T),   c = (cost - min) / (max - min)

a softmax (Boltzmann's distribution) over the normalised cost, so that T means the same at any
load. At T = 0 it is the cheapest, which is the limit of T -> 0.
"""

import random

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def load_costs(
    *, prefill_tokens: NDArray[np.int64], active_blocks: Floats, per_token: float
) -> Floats:
    """Return the part of each place's cost that is the same for every prompt, float64 [places].

    `per_token` is overlap_weight / block size.
    """
    return prefill_tokens * per_token + active_blocks


def cheapest(cost: Floats) -> NDArray[np.intp]:
    """Return the positions of the lowest cost, one or several."""
    return np.flatnonzero(cost == cost.min())


def drawn(cost: Floats, temperature: float, rng: random.Random) -> int:
    """Return a position by the softmax above; `temperature` is more than 0."""
    spread = cost.max() - cost.min()
    if not spread:
        return rng.randrange(len(cost))
    weights = np.exp((cost.min() - cost) / (spread * temperature))
    total = np.cumsum(weights)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
