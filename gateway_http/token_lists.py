"""Long lists of token ids in JSON, read and written by parts.

One call for 131,000 of them takes 8 ms in all, in which no other request gets on.
"""

import re
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway_http.openai import decode_json
from runtime.errors import InvalidRequest
from runtime.turns import own_turn
from wire.items import is_long
from wire.sampling import TokenId

_PART_BYTES = 32 * 1024  # some 5,000 ids, 0.3 ms
_LIST = re.compile(rb'\[\s*[^\s"{\[\]]')
_LIST_OF_TEXTS = re.compile(rb'\[\s*"')
_LIST_OF_LISTS = re.compile(rb'\[\s*\[\s*[^\s"{\[\]]')
# What no list of ids has in it, and the least of its kind.
_OTHERS = {b'"': b'""', b"{": b"{}", b"[": b"[]"}


async def take_ids(
    data: bytes, field: str, *, lists: int = 0
) -> tuple[bytes, "list[array[int]] | None"]:
    """Take token ids out of a long body: it with an empty `field`, and the list or lists it had.

    As it is, and None, if it is short, or has no such lists, or is no JSON: then it is for the
    decoder of the whole body. Up to `lists` lists may stand in a list. Raises InvalidRequest naming
    the id at fault, or the field for too many lists or texts.
    """
    if not is_long(data):
        return data, None
    async with own_turn():
        try:
            fields = decode_json(data, dict[str, msgspec.Raw])
        except InvalidRequest:
            return data, None
    text = bytes(fields.get(field, b""))
    if lists and _LIST_OF_TEXTS.match(text) and _least_texts(text) > lists:
        raise InvalidRequest(f"{field}: more than {lists} texts", param=field)
    found = await _read(text, field, lists)
    if found is None:
        return data, None
    return msgspec.json.encode(fields | {field: ()}), found


async def read_ids(text: bytes, field: str) -> "array[int] | None":
    """Return the ids of one JSON value, None if it is short or no such list.

    The list may stand in a list, alone. Raises InvalidRequest naming the id at fault.
    """
    if not is_long(text) or text.count(b"[") > 2:
        return None
    found = await _read(text, field, 1)
    return found[0] if found else None


async def _read(text: bytes, field: str, lists: int) -> "list[array[int]] | None":
    try:
        if _LIST.match(text):
            return [await _by_parts(text, field)]
        if not lists or not _LIST_OF_LISTS.match(text):
            return None
        if text.count(b"[") > lists + 1:
            raise InvalidRequest(f"{field}: more than {lists} lists", param=field)
        inner = decode_json(text, list[msgspec.Raw])
        return [await _by_parts(bytes(it), f"{field}[{at}]") for at, it in enumerate(inner)]
    except _OtherError:
        return None


def _least_texts(text: bytes) -> int:
    """How many texts a list has at least, by a look at its beginning; quotes in them not counted.

    Where it is not so many, the texts are long, and all of them are soon read.
    """
    begin = text[:_PART_BYTES]
    return (begin.count(b'"') - begin.count(b'\\"')) // 2


class _OtherError(Exception):
    """It is no list of token ids: for the decoder of the whole body, which may say why."""


async def _by_parts(text: bytes, field: str) -> "array[int]":
    ids = array("i")
    if not text.startswith(b"["):
        raise _OtherError
    text = _up_to_others(text)
    at, end = 1, len(text) - 1
    while at < end:
        comma = text.find(b",", at + _PART_BYTES, end)
        cut = end if comma < 0 else comma
        async with own_turn():
            ids.fromlist(_ids(b"[%b]" % text[at:cut], field, len(ids)))
        at = cut + 1
    if not ids:
        raise _OtherError
    return ids


def _up_to_others(text: bytes) -> bytes:
    """The list up to its first value that can have commas of its own, which is made empty."""
    places = [(text.find(it, 1), it) for it in _OTHERS]
    at, kind = min(((at, it) for at, it in places if at > 0), default=(-1, b""))
    return text if at < 0 else b"%b%b]" % (text[:at], _OTHERS[kind])


def _ids(part: bytes, field: str, before: int) -> list[int]:
    try:
        return decode_json(part, list[TokenId])
    except InvalidRequest as error:
        if error.param is None:
            raise _OtherError from None
        place = f"{field}[{before + int(error.param[1:-1])}]"
        what = error.message.removeprefix(error.param)
        raise InvalidRequest(f"{place}{what}", param=place) from None


async def write_list(values: Sequence[Any], size: int = 4096) -> msgspec.Raw:
    """Return the JSON of a list, made by parts of so many, one in each turn of the loop.

    What is one part takes no turn.
    """
    if len(values) <= size:
        return msgspec.Raw(msgspec.json.encode(list(values)))
    parts = []
    for at in range(0, len(values), size):
        async with own_turn():
            parts.append(msgspec.json.encode(list(values[at : at + size]))[1:-1])
    return msgspec.Raw(b"[%b]" % b",".join(parts))
