"""Long JSON, read and gone through by parts.

A conversation of thousands of messages takes milliseconds in one piece. These yield before each
part; whoever runs on an event loop drives them with `runtime.turns.in_turns`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from runtime.turns import Steps
from wire.nesting import nesting_steps
from wire.type_errors import type_error

PART_ITEMS = 256
"""How many messages, or what is like them, are gone through in one turn."""
_LONG_BYTES = 64 * 1024
_PART_BYTES = 16 * 1024  # 425 tiny messages, 0.1 ms; where memory is new 1
_LEVELS = 8  # in which what is long is looked for: each level takes another look at all below it
# Taking a list of numbers apart is no faster than reading it.
_APART = re.compile(rb'\s*(\{|\[(?=\s*[\[{"]))')
_FIRST_ITEM = re.compile(rb'\s*\[\s*([{"])')
_PLACE = re.compile(r"`\$\[(\d+)\]")
_List = msgspec.json.Decoder[list[Any]]
_ANY: _List = msgspec.json.Decoder(list[Any])
_OF_KIND: dict[bytes, _List] = {
    b"{": msgspec.json.Decoder(list[dict[str, Any]]),
    b'"': msgspec.json.Decoder(list[str]),
}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_apart = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NOT_VALID = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def is_long(json: bytes | str | msgspec.Raw) -> bool:
    """Whether reading so much JSON needs a turn of the loop for itself, or parts."""
    return len(json) >= _LONG_BYTES


def take_items(data: bytes, names: Sequence[str]) -> Steps[tuple[bytes, dict[str, Any]]]:
    """Take long lists and objects out of a long object: it with little in their place, and they.

    A list keeps an empty item of its kind, for the decoder of the whole to say what a field may be.
    What is short, not valid, or a list of anything but objects or texts stays as it is. Raises what
    read_items does.
    """
    if not names or not is_long(data):
        return data, {}
    yield
    taken: dict[str, Any] = {}
    try:
        fields = _fields(data)
        for name in names:
            text = bytes(fields.get(name, b""))
            first = _APART.match(text) if is_long(text) else None
            if first is None:
                continue
            if first[1] == b"{":
                taken[name] = yield from _read_object(text, _LEVELS)
                fields[name] = msgspec.Raw(b"{}")
            elif (items := (yield from read_items(text, name))) is not None:
                taken[name] = items
                fields[name] = msgspec.Raw(b"[{}]" if isinstance(items[0], dict) else b'[""]')
    except _NOT_VALID:
        return data, {}
    return (msgspec.json.encode(fields), taken) if taken else (data, {})


def read_items(text: bytes, param: str) -> Steps[list[Any] | None]:
    """Read a JSON list whose items are all objects or all texts, as the first is.

    None if it is no such list, or not valid: for a decoder of the whole, which may say why. Raises
    InvalidRequest naming the first item of another kind.
    """
    first = _FIRST_ITEM.match(text)
    if first is None:
        return None
    items: list[Any] = []
    try:
        yield from _read_list(text, _LEVELS, items, first[1])
    except msgspec.ValidationError as error:
        before = len(items)
        raise type_error(
            _PLACE.sub(lambda it: f"`$.{param}[{before + int(it[1])}]", str(error))
        ) from None
    except _NOT_VALID:
        return None
    return items


def _read(text: bytes, levels: int) -> Steps[Any]:
    """Decode JSON by parts. Raises what msgspec's decoder does."""
    first = _APART.match(text) if levels and is_long(text) else None
    if first is None:
        return msgspec.json.decode(text)
    if first[1] == b"{":
        return (yield from _read_object(text, levels))
    items: list[Any] = []
    yield from _read_list(text, levels, items)
    return items


def _read_object(text: bytes, levels: int) -> Steps[dict[str, Any]]:
    yield
    made: dict[str, Any] = {}
    size = 0
    for name, value in _fields(text).items():
        if size >= _PART_BYTES:
            yield
            size = 0
        size += len(value)
        made[name] = yield from _read(bytes(value), levels - 1)
    return made


def _read_list(
    text: bytes, levels: int, items: list[Any], kind: bytes | None = None
) -> Steps[None]:
    """Add the items of a list to `items`. With a kind they are all of it."""
    decoder = _ANY if kind is None else _OF_KIND[kind]
    if not is_long(text):
        items += decoder.decode(text)
        return
    yield
    apart = _apart(text)
    while len(items) < len(apart):
        yield
        next_one = apart[len(items)]
        if is_long(next_one) and kind in (None, bytes(next_one)[:1]):
            items.append((yield from _read(bytes(next_one), levels - 1)))
        else:
            items += decoder.decode(_part(apart, len(items)))


def _part(apart: Sequence[msgspec.Raw], at: int) -> bytes:
    """The items from `at` on, as many as are decoded in one piece, as a list of their own."""
    end, size = at, 0
    while end < len(apart) and size < _PART_BYTES:
        if end > at and is_long(apart[end]):
            break
        size += len(apart[end])
        end += 1
    return b"[%b]" % b",".join(apart[at:end])


def each_item(
    items: Sequence[Any] | None, param: str, do: Callable[[int, Any], object] | None = None
) -> Steps[None]:
    """Check how deep the items nest, and do something with each and its place.

    Raises InvalidRequest naming `param`, or what `do` does.
    """
    if not items:
        return
    if len(items) > PART_ITEMS:
        yield
    many = yield from nesting_steps(items, param)
    if do is None:
        return
    if many:
        yield
    for place, item in enumerate(items):
        if place % PART_ITEMS == PART_ITEMS - 1:
            yield
        do(place, item)
    if many:
        yield
