"""Long lists of JSON objects or texts, read and gone through by parts.

A conversation of thousands of messages takes milliseconds in one piece. These yield between two
parts; whoever runs on an event loop drives them with `runtime.turns.in_turns`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from runtime.turns import Steps
from wire.nesting import check_nesting
from wire.type_errors import type_error

LONG_BYTES = 64 * 1024
"""From there on JSON is read in a turn of its own, or by parts."""
_PART_BYTES = 32 * 1024  # 850 tiny messages, 0.2 ms; of schemas more
_PART_ITEMS = 256
_FIRST = re.compile(rb'\s*\[\s*([{"])')
_PLACE = re.compile(r"`\$\[(\d+)\]")
_OBJECTS = msgspec.json.Decoder(list[dict[str, Any]])
_TEXTS = msgspec.json.Decoder(list[str])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_apart = msgspec.json.Decoder(list[msgspec.Raw]).decode


def take_items(data: bytes, names: Sequence[str]) -> Steps[tuple[bytes, dict[str, list[Any]]]]:
    """Take long lists out of a long object: it with the first item of each, and the lists by name.

    The first item keeps its place, for the decoder of the whole to say what a field may be. What is
    short, or not valid, stays as it is. Raises what read_items does.
    """
    if not names or len(data) < LONG_BYTES:
        return data, {}
    yield
    try:
        fields = _fields(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data, {}
    taken = {}
    for name in names:
        text = bytes(fields.get(name, b""))
        if len(text) < LONG_BYTES:
            continue
        if (items := (yield from read_items(text, name))) is not None:
            taken[name] = items
            fields[name] = msgspec.Raw(msgspec.json.encode(items[:1]))
    return (msgspec.json.encode(fields), taken) if taken else (data, {})


def read_items(text: bytes, param: str) -> Steps[list[Any] | None]:
    """Read a JSON list whose items are all objects or all texts, as the first is.

    None if it is no such list, or not valid: for a decoder of the whole, which may say why. Raises
    InvalidRequest naming the first item of another kind.
    """
    first = _FIRST.match(text)
    if first is None:
        return None
    decoder: msgspec.json.Decoder[list[Any]] = _OBJECTS if first[1] == b"{" else _TEXTS
    items: list[Any] = []
    yield
    try:
        apart = _apart(text)
        while len(items) < len(apart):
            yield
            items += decoder.decode(_part(apart, len(items)))
    except msgspec.ValidationError as error:
        before = len(items)
        raise type_error(
            _PLACE.sub(lambda it: f"`$.{param}[{before + int(it[1])}]", str(error))
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return items


def _part(apart: Sequence[msgspec.Raw], at: int) -> bytes:
    """The items from `at` on, as many as are decoded in one piece, as a list of their own."""
    end, size = at, 0
    while end < len(apart) and size < _PART_BYTES:
        size += len(apart[end])
        end += 1
    return b"[%b]" % b",".join(apart[at:end])


def each_item(
    items: Sequence[Any] | None, param: str, do: Callable[[int, Any], object] | None = None
) -> Steps[None]:
    """Check how deep the items nest, and do something with each and its place.

    Raises InvalidRequest naming `param`, or what `do` does.
    """
    items = items or ()
    for at in range(0, len(items), _PART_ITEMS):
        if len(items) > _PART_ITEMS:
            yield
        part = items[at : at + _PART_ITEMS]
        check_nesting(part, param)
        if do is None:
            continue
        for place, item in enumerate(part, at):
            do(place, item)
