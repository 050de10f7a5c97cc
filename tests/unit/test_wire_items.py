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
    assert json.loads(rest) == {**body, "messages": items[:1]}


@pytest.mark.parametrize(
    "value",
    [[], [1] * LONG, [[1]] * LONG, [None] * LONG, "x" * LONG, {"a": ["b"] * LONG}],
    ids=lambda it: str(it)[:9],
)
def test_what_is_no_such_list_is_left_as_it_is(value):
    data = json.dumps({"messages": value, "user": "x" * LONG}).encode()
    assert at_once(take_items(data, ["messages"])) == (data, {})


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
    assert turns(each_item([MESSAGE] * 9, "messages")) == 0
    assert turns(each_item(None, "messages")) == 0


def test_a_long_list_takes_a_turn_for_each_part():
    data = json.dumps([MESSAGE] * 10_000).encode()
    assert turns(read_items(data, "messages")) >= len(data) // (32 * 1024)
    assert turns(each_item([MESSAGE] * 10_000, "messages")) >= 20


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
