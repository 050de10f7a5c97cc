"""Long lists of token ids: what comes out of parts is what is in the whole body."""

import asyncio
import json
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.completions import read_prompts
from gateway_http.openai import decode_json
from gateway_http.token_lists import read_ids, take_ids, write_list
from runtime.errors import InvalidRequest

LONG = 70_000  # bytes that make a body a long one
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50)
REST = {"model": "m", "max_tokens": 4, "stop": ["[1,2]", "\u20ac"]}


def take(data: bytes, lists: int = 4) -> tuple[bytes, "list[array[int]] | None"]:
    return asyncio.run(take_ids(data, "prompt", lists=lists))


def read(data: bytes) -> "array[int] | None":
    return asyncio.run(read_ids(data, "input_ids"))


@given(few=IDS, times=st.integers(LONG // 2, LONG), indent=st.sampled_from([None, 0, 1]))
def test_ids_and_all_other_fields_come_through(few, times, indent):
    ids = (few * (times // len(few) + 1))[:times]
    body = json.dumps({**REST, "prompt": ids, "stream": True}, indent=indent)
    rest, found = take(body.encode())
    assert found is not None
    assert [it.tolist() for it in found] == [ids]
    assert json.loads(rest) == {**REST, "prompt": [], "stream": True}


@given(
    few=st.lists(IDS, min_size=1, max_size=4),
    times=st.integers(LONG // 2, LONG),
    indent=st.sampled_from([None, 0, 1]),
)
def test_lists_of_ids_in_a_list_come_through(few, times, indent):
    few[-1] *= times // len(few[-1]) + 1
    rest, found = take(json.dumps({**REST, "prompt": few}, indent=indent).encode())
    assert found is not None
    assert [it.tolist() for it in found] == few
    assert json.loads(rest) == {**REST, "prompt": []}


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * LONG,
        "[1, 2]" * LONG,
        ["x" * LONG] * 4,
        ['"'] * 4,
        [],
        [[]],
        [[], [1] * LONG],
        [[1] * LONG, []],
        [[[1] * LONG]],
        [{"a": [1]}] * LONG,
        {"a": [1] * LONG},
        10 ** (LONG // 20),
    ],
    ids=lambda it: str(it)[:5] + str(it)[-5:],
)
def test_anything_else_is_left_as_it_is(prompt):
    data = json.dumps({**REST, "prompt": prompt, "user": "x" * LONG}).encode()
    assert take(data) == (data, None)


@pytest.mark.parametrize("wrong", [-1, 2**31, 2**64, None, 1.5, True, "a,b]", [1], {"a": [1, 2]}])
@pytest.mark.parametrize("before", [1, LONG])
@pytest.mark.parametrize("nested", [False, True])
def test_the_id_at_fault_is_named_as_for_a_whole_body(wrong, before, nested):
    ids = [1] * before + [wrong] + [1] * LONG
    prompt = [[5], ids] if nested else ids
    with pytest.raises(InvalidRequest) as whole:
        read_prompts(prompt, "prompt")
    with pytest.raises(InvalidRequest) as by_parts:
        take(json.dumps({"prompt": prompt}).encode())
    assert by_parts.value.message == whole.value.message
    assert by_parts.value.param == whole.value.param
    assert f"[{before}]" in whole.value.message


def test_more_lists_than_are_allowed_are_refused():
    data = json.dumps({"prompt": [[1] * LONG] * 5}).encode()
    with pytest.raises(InvalidRequest, match="prompt: more than 4"):
        take(data)
    _, found = take(data, lists=5)
    assert found is not None
    assert [len(it) for it in found] == [LONG] * 5


@pytest.mark.parametrize("text", ["", "x", '"', '\\"', "\\", ","])
def test_more_texts_than_are_allowed_are_refused_by_a_look_at_the_first(text):
    data = json.dumps({"prompt": [text] * LONG}).encode()
    with pytest.raises(InvalidRequest, match="prompt: more than 4 texts"):
        take(data)


def test_where_one_list_is_wanted_a_list_of_lists_is_left_as_it_is():
    data = json.dumps({"prompt": [[1] * LONG]}).encode()
    assert take(data, lists=0) == (data, None)


@pytest.mark.parametrize(
    "data",
    [
        b'{"prompt": [%b1,]}' % (b"1," * LONG),
        b'{"prompt": [%b,1]}' % (b"1," * LONG),
        b'{"prompt": [%b1' % (b"1," * LONG),
        b'{"prompt": [%b]}' % (b" " * LONG),
        b'{"prompt": [[%b]}' % (b"1," * LONG),
        b'{"prompt": [%b01]}' % (b"1," * LONG),
        b'{"prompt": [[%b01]]}' % (b"1," * LONG),
        b'{"user": "%b"}' % (b"x" * LONG),
        b"[%b1]" % (b"1," * LONG),
        b'{"a": %b1' % (b"[" * LONG),
        b'{"prompt": "%b"}' % (b"\xff" * LONG),
        b"\xff" * LONG,
    ],
    ids=range(12),
)
def test_what_is_no_such_body_is_left_as_it_is(data):
    assert take(data) == (data, None)


def test_short_bodies_are_left_as_they_are():
    data = b'{"prompt": [1, 2]}'
    assert take(data) == (data, None)


def test_a_long_value_is_read_flat_or_alone_in_a_list():
    ids = list(range(LONG))
    assert read(json.dumps(ids).encode()) == array("i", ids)
    assert read(json.dumps([ids]).encode()) == array("i", ids)
    assert read(json.dumps([ids, ids]).encode()) is None
    assert read(json.dumps([1, 2]).encode()) is None
    assert read(json.dumps(["x"] * LONG).encode()) is None


def test_two_at_a_time_take_turns_of_the_loop_for_each_part():
    data = json.dumps({**REST, "prompt": [7] * 100_000}).encode()

    async def turns() -> int:
        both = asyncio.gather(take_ids(data, "prompt"), take_ids(data, "prompt"))
        turns = 0
        while not both.done():
            await asyncio.sleep(0)
            turns += 1
        for _, found in both.result():
            assert found is not None
            assert [len(it) for it in found] == [100_000]
        return turns

    assert asyncio.run(turns()) >= 2 * len(data) // (32 * 1024)


@given(
    st.one_of(
        st.lists(st.integers(0, 2**31 - 1)), st.lists(st.text(alphabet='a,"]\n\u20ac', max_size=3))
    ),
    st.sampled_from([1, 5000]),
)
def test_lists_are_written_as_they_are(few, times):
    values = few * times
    written = asyncio.run(write_list(values))
    assert bytes(written) == msgspec.json.encode(values)
    assert decode_json(bytes(written), list) == values
