"""Long lists of objects or texts: what comes out of parts is what is in the whole."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest
from runtime.turns import at_once
from wire.items import each_item, read_items, take_items
from wire.nesting import MAX_NESTING

LONG = 70_000
TEXTS = st.text(alphabet='a,"]}\\\n\u20ac', max_size=3)
OBJECTS = st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.lists(TEXTS, max_size=2)))
MESSAGE = {"role": "user", "content": "Hi"}


def turns(steps: Any) -> int:
    return sum(1 for _ in steps)


@settings(deadline=None)
@given(
    few=st.one_of(
        st.lists(OBJECTS, min_size=1, max_size=5), st.lists(TEXTS, min_size=1, max_size=5)
    ),
    times=st.integers(LONG // 2, LONG // 2 + 9),
    indent=st.sampled_from([None, 0, 1]),
)
def test_items_and_all_other_fields_come_through(few, times, indent):
    items = (few * (times // len(few) + 1))[:times]
    body = {"model": "m", "messages": items, "n": 1, "tools": [1], "user": "x" * LONG}
    data = json.dumps(body, indent=indent).encode()
    rest, taken = at_once(take_items(data, ["messages", "tools", "user", "other"]))
    assert taken == {"messages": items}
    assert json.loads(rest) == {**body, "messages": [type(items[0])()]}


@pytest.mark.parametrize(
    "value",
    [[], [1] * LONG, [[1]] * LONG, [None] * LONG, "x" * LONG],
    ids=lambda it: str(it)[:9],
)
def test_what_is_no_such_list_is_left_as_it_is(value):
    data = json.dumps({"messages": value, "user": "x" * LONG}).encode()
    assert at_once(take_items(data, ["messages"])) == (data, {})


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda it: st.one_of(st.lists(it, max_size=4), st.dictionaries(TEXTS, it, max_size=4)),
    max_leaves=12,
)


def grown(value: Any, times: int) -> Any:
    """The value with each list in it so many times as long, and each object with a long text."""
    if isinstance(value, list):
        return [grown(it, times) for it in value] * times
    if isinstance(value, dict):
        return {"long": "x" * LONG} | {name: grown(it, times) for name, it in value.items()}
    return value


@settings(deadline=None, max_examples=50)
@given(value=VALUES, times=st.sampled_from([1, 3, 40]), indent=st.sampled_from([None, 1]))
def test_whatever_stands_in_an_item_or_an_object_comes_through(value, times, indent):
    long = {"deep": [{"deeper": grown(value, times)}, "x" * LONG]}
    body = {"messages": [MESSAGE, long, MESSAGE], "kwargs": long}
    data = json.dumps(body, indent=indent).encode()
    rest, taken = at_once(take_items(data, ["messages", "kwargs"]))
    assert taken == body
    assert json.loads(rest) == {"messages": [{}], "kwargs": {}}


@pytest.mark.parametrize(
    "long",
    [
        {"content": [{"type": "text", "text": "Hi"}] * 5000},
        {"parameters": {"properties": {str(it): {"type": "string"} for it in range(5000)}}},
        [[{"a": "b"}] * 5000] * 2,
    ],
    ids=["list", "object", "lists"],
)
def test_a_single_long_item_takes_a_turn_for_each_part_of_it(long):
    size = len(json.dumps(long))
    data = json.dumps({"messages": [{"a": long}]}).encode()
    assert turns(take_items(data, ["messages"])) >= size // (48 * 1024)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_what_is_long_at_every_level_is_read_whole_from_some_level_on(levels):
    data = b'{"messages": [%b"%b"%b]}' % (b'{"a":' * levels, b"x" * LONG, b"}" * levels)
    if levels > 1000:
        assert at_once(take_items(data, ["messages"])) == (data, {})
    else:
        assert at_once(take_items(data, ["messages"]))[1] == json.loads(data)


@pytest.mark.parametrize("wrong", [1, None, "x", [MESSAGE], True])
@pytest.mark.parametrize("before", [1, 5000])
def test_the_item_of_another_kind_is_named_by_its_place(wrong, before):
    items = [MESSAGE] * before + [wrong] + [MESSAGE] * 5000
    with pytest.raises(InvalidRequest, match="expected `object`, got") as caught:
        at_once(take_items(json.dumps({"messages": items}).encode(), ["messages"]))
    assert caught.value.param == f"messages[{before}]"


@pytest.mark.parametrize(
    "data",
    [
        b'{"messages": [%b{}' % (b"{}," * LONG),
        b'{"messages": [%b]}' % (b"{}," * LONG),
        b'{"messages": [%b{]}' % (b"{}," * LONG),
        b'{"messages": ["%b", "x"]}' % (b"\xff" * LONG),
        b'{"messages": [{"a": %b}]}' % (b"[" * LONG),
        b'{"messages": [{"a": %b}]}' % (b"[" * LONG + b"]" * LONG),
        b'[{"messages": [%b{}]}]' % (b"{}," * LONG),
        b"\xff" * LONG,
    ],
    ids=range(8),
)
def test_what_is_not_valid_is_left_to_a_decoder_of_the_whole(data):
    assert at_once(take_items(data, ["messages"])) == (data, {})


def test_what_is_short_takes_no_turn():
    data = json.dumps({"messages": [MESSAGE]}).encode()
    assert turns(take_items(data, ["messages"])) == 0
    assert turns(read_items(json.dumps([MESSAGE] * 9).encode(), "messages")) == 0
    assert turns(each_item([MESSAGE] * 9, "messages")) == 0
    assert turns(each_item(None, "messages")) == 0


def test_a_long_list_takes_a_turn_for_each_part():
    data = json.dumps([MESSAGE] * 10_000).encode()
    assert turns(read_items(data, "messages")) >= len(data) // (32 * 1024)
    assert turns(each_item([MESSAGE] * 10_000, "messages", lambda *_: None)) >= 30


def test_each_item_comes_once_with_its_place():
    seen: list[tuple[int, Any]] = []
    at_once(each_item(range(1000), "messages", lambda *it: seen.append(it)))
    assert seen == [(place, place) for place in range(1000)]


@pytest.mark.parametrize("place", [0, 999])
def test_an_item_that_nests_too_deep_is_refused_wherever_it_stands(place):
    deep: list[Any] = []
    for _ in range(MAX_NESTING):
        deep = [deep]
    items: list[Any] = [MESSAGE] * 1000
    items[place] = deep
    with pytest.raises(InvalidRequest) as caught:
        at_once(each_item(items, "messages"))
    assert caught.value.param == "messages"
