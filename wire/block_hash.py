"""Prefix hashes of KV blocks: one 64-bit number for "these tokens from the start of the prompt".

Front doors and workers compute the same ones, whatever the engine's own hashes are. With token
ids t[i, j] of block i, all arithmetic modulo 2**64:

    local[i] = sum over j of (t[i, j] + 1) * K[j]       (multilinear, Carter & Wegman 1979)
    H[i] = H[i - 1] + mix(local[i] ^ (i + 1) * GOLDEN)   (mix: the finaliser of MurmurHash3)
    H[-1] = 0, or a hash of adapter and cache salt

K and mix' constants are odd; K comes from SplitMix64 (Steele, Lea & Flood 2014), seed 1337. Every
block is hashed by itself and the chain is a cumulative sum, so that numpy does a whole prompt at
once: 20 ns a block of 16 tokens, where a chain of XXH3 calls takes 108. It is a hint for routing,
not an address: who can choose token ids can make two prefixes collide, and gains a cache miss.
"""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from operator import mul
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]
"""Prefix hashes, uint64 [n], in the prompt's order."""

_SEED = 1337
_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)
# Up to here Python's integers are faster than numpy's calls (16 tokens a block: 4 against 26 us
# for one, 12 against 21 for four): a decoding sequence fills its blocks one by one.
_FEW_BLOCKS = 4
NO_HASHES: Hashes = np.empty(0, np.uint64)


def prefix_hashes(token_ids: Sequence[int], block_size: int, root: int = 0) -> Hashes:
    """Return the hashes of the full blocks of a prompt; `root` is `root_hash` of its adapter.

    An array("i") or a numpy array of 32-bit integers is read in place; a list is copied first,
    which takes longer than the hashing.
    """
    return extend_hashes(root, 0, token_ids, block_size)


def extend_hashes(parent: int, position: int, token_ids: Sequence[int], block_size: int) -> Hashes:
    """Return the hashes of the full blocks in `token_ids` that follow the prefix hash `parent`.

    `position` is how many blocks stand before them; `parent` is the root where it is 0.
    """
    count = len(token_ids) // block_size
    if not count:
        return NO_HASHES
    if count <= _FEW_BLOCKS and isinstance(token_ids, list):
        return _extend_by_few(parent, position, token_ids, block_size)
    tokens = _as_array(token_ids)[: count * block_size].reshape(count, block_size)
    # The "+ 1" of each token, taken out of the sum.
    weights, constant = _weights(block_size)
    local = tokens.astype(np.uint64) @ weights
    local += constant
    local ^= np.arange(position + 1, position + count + 1, dtype=np.uint64) * _GOLDEN
    local ^= local >> _SHIFT
    local *= _MIX_1
    local ^= local >> _SHIFT
    local *= _MIX_2
    local ^= local >> _SHIFT
    # A slice: of a single number numpy would say that it overflows, as it should.
    local[:1] += np.uint64(parent)
    return np.cumsum(local, out=local)


def _extend_by_few(parent: int, position: int, token_ids: list[int], block_size: int) -> Hashes:
    weights, constant = _weights_as_int(block_size)
    hashes: list[int] = []
    for at in range(len(token_ids) // block_size):
        block = token_ids[at * block_size : (at + 1) * block_size]
        local = (sum(map(mul, block, weights)) + constant) & _MASK
        local ^= (position + at + 1) * int(_GOLDEN) & _MASK
        local ^= local >> int(_SHIFT)
        local = local * int(_MIX_1) & _MASK
        local ^= local >> int(_SHIFT)
        local = local * int(_MIX_2) & _MASK
        local ^= local >> int(_SHIFT)
        parent = (parent + local) & _MASK
        hashes.append(parent)
    return np.array(hashes, np.uint64)


@lru_cache(maxsize=1024)
def root_hash(lora_name: str | None, cache_salt: str | None) -> int:
    """Return what a prompt's chain starts from: prompts share blocks only under the same root."""
    if not lora_name and not cache_salt:
        return 0
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    name = (lora_name or "").encode()
    state = blake2b(len(name).to_bytes(4, "little") + name, digest_size=8)
    state.update((cache_salt or "").encode())
    return int.from_bytes(state.digest(), "little")


def pack_hashes(hashes: Hashes) -> bytes:
    """Return hashes as they travel: uint64, little-endian."""
    return hashes.astype("<u8", copy=False).tobytes()


def unpack_hashes(data: bytes) -> Hashes:
    """Return hashes from their bytes; raises ValueError for a broken length."""
    return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)


def _as_array(token_ids: Sequence[int]) -> NDArray[np.integer]:
    if isinstance(token_ids, np.ndarray):
        return token_ids
    if not isinstance(token_ids, array):
        token_ids = array("i", token_ids)
    return np.frombuffer(token_ids, np.dtype(token_ids.typecode))


@lru_cache(maxsize=8)
def _weights(block_size: int) -> tuple[Hashes, np.uint64]:
    state, keys = _SEED, []
    for _ in range(block_size):
        state = (state + int(_GOLDEN)) & _MASK
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
        keys.append((z ^ z >> 31) | 1)
    return np.array(keys, np.uint64), np.uint64(sum(keys) & _MASK)


@lru_cache(maxsize=8)
def _weights_as_int(block_size: int) -> tuple[list[int], int]:
    weights, constant = _weights(block_size)
    return weights.tolist(), int(constant)
