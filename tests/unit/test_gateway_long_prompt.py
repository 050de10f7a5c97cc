"""Long prompts of token ids: what comes out of parts is what is in the whole body."""

import asyncio
import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.long_prompt import LongPrompts

LONG = 70_000  # bytes that make a body a long one
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50)
REST = {"model": "m", "max_tokens": 4, "stop": ["[1,2]", "\u20ac"]}


def split(data: bytes) -> tuple[bytes, "array[int] | None"]:
    return asyncio.run(LongPrompts().split(data))


@given(few=IDS, times=st.integers(LONG // 2, LONG), indent=st.sampled_from([None, 0, 1]))
def test_ids_and_all_other_fields_come_through(few, times, indent):
    ids = (few * (times // len(few) + 1))[:times]
    body = json.dumps({**REST, "prompt": ids, "stream": True}, indent=indent)
    rest, found = split(body.encode())
    assert found is not None
    assert found.tolist() == ids
    assert json.loads(rest) == {**REST, "prompt": [], "stream": True}


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * LONG,
        "[1, 2]" * LONG,
        ["x"] * LONG,
        [[1]] * LONG,
        [1] * LONG + [-1],
        [1] * LONG + [2**31],
        [1] * LONG + [None],
        [1] * LONG + [1.5],
        [1] * LONG + [[1]],
        {"a": [1] * LONG},
        10 ** (LONG // 20),
    ],
    ids=lambda it: str(it)[:5] + str(it)[-5:],
)
def test_anything_else_is_left_as_it_is(prompt):
    data = json.dumps({**REST, "prompt": prompt, "user": "x" * LONG}).encode()
    assert split(data) == (data, None)


@pytest.mark.parametrize(
    "data",
    [
        b'{"prompt": [%b1,]}' % (b"1," * LONG),
        b'{"prompt": [%b,1]}' % (b"1," * LONG),
        b'{"prompt": [%b1' % (b"1," * LONG),
        b'{"prompt": [%b]}' % (b" " * LONG),
        b'{"user": "%b"}' % (b"x" * LONG),
        b"[%b1]" % (b"1," * LONG),
        b'{"a": %b1' % (b"[" * LONG),
        b'{"prompt": "%b"}' % (b"\xff" * LONG),
        b"\xff" * LONG,
    ],
    ids=range(9),
)
def test_what_is_no_such_body_is_left_as_it_is(data):
    assert split(data) == (data, None)


def test_short_bodies_are_left_as_they_are():
    data = b'{"prompt": [1, 2]}'
    assert split(data) == (data, None)


def test_two_at_a_time_take_turns_of_the_loop_for_each_part():
    data = json.dumps({**REST, "prompt": [7] * 100_000}).encode()

    async def turns() -> int:
        prompts = LongPrompts()
        both = asyncio.gather(prompts.split(data), prompts.split(data))
        turns = 0
        while not both.done():
            await asyncio.sleep(0)
            turns += 1
        assert [len(ids or ()) for _, ids in both.result()] == [100_000, 100_000]
        return turns

    assert asyncio.run(turns()) >= 2 * len(data) // (32 * 1024)
