"""A long list of token ids in a completion's JSON, parsed by parts.

One call for a body of 131,000 takes 8 ms in all, in which no other request gets on.
"""

import asyncio
from array import array

import msgspec

from gateway_http.openai import decode_json
from runtime.errors import InvalidRequest
from wire.sampling import TokenId

_LONG_BYTES = 64 * 1024
_PART_BYTES = 32 * 1024  # some 5,000 ids, 0.3 ms


class LongPrompts:
    """Takes token ids out of long bodies, of one at a time, and one part in each turn of the loop.

    What it does not take, for whatever reason, is left to the reading of the whole body, which says
    what is wrong with it.
    """

    def __init__(self) -> None:
        self._mine = asyncio.Lock()

    async def split(self, data: bytes) -> tuple[bytes, "array[int] | None"]:
        """Return a body with an empty `prompt`, and its token ids; as it is, and None, otherwise.

        Only a long body is split, of which `prompt` is a list of valid token ids and of nothing
        else.
        """
        if len(data) < _LONG_BYTES:
            return data, None
        async with self._mine:
            try:
                fields = decode_json(data, dict[str, msgspec.Raw])
                ids = await _by_parts(bytes(fields.get("prompt", b"")))
            except InvalidRequest:
                return data, None
        if not ids:
            return data, None
        return msgspec.json.encode(fields | {"prompt": ()}), ids


async def _by_parts(text: bytes) -> "array[int]":
    """Parse a list, which is known to be valid JSON; raises InvalidRequest if not of token ids."""
    ids = array("i")
    if not text.startswith(b"["):
        return ids
    at, end = 1, len(text) - 1
    while at < end:
        await asyncio.sleep(0)
        comma = text.find(b",", at + _PART_BYTES, end)
        cut = end if comma < 0 else comma
        ids.fromlist(decode_json(b"[%b]" % text[at:cut], list[TokenId]))
        at = cut + 1
    return ids
