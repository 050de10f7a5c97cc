"""The bytes of a streamed answer."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.answers import Answer
from gateway_http.sse import DONE, ChunkWriter, error_event
from gateway_http.whole_answer import WholeAnswer
from runtime.errors import EngineFailed, WorkerLost
from wire.generate import ChoiceDelta, GenerateDelta, TokenText, ToolCallDelta, Usage

USAGE = Usage(prompt_tokens=4, completion_tokens=2, cached_tokens=1)


def answer(**fields) -> Answer:
    return Answer(**{"id": "x-1", "model": 'm"é', "created": 7, "chat": True, **fields})


def text(value: str, index: int = 0) -> GenerateDelta:
    return GenerateDelta(choices=[ChoiceDelta(index=index, text=value, token_ids=[1])])


def final(reason: str = "stop") -> GenerateDelta:
    return GenerateDelta(choices=[ChoiceDelta(finish_reason=reason)], usage=USAGE)


def events(data: bytes) -> list[dict]:
    parts = data.split(b"\n\n")
    assert parts.pop() == b""
    return [json.loads(part.removeprefix(b"data: ")) for part in parts if part != DONE.strip()]


def test_the_first_chat_chunk_carries_the_role_and_later_ones_only_text():
    writer = ChunkWriter(answer())
    first, second = events(writer.write(0, text("Par")))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert second == {
        "id": "x-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": 'm"é',
        "choices": [
            {"index": 0, "delta": {"content": "Par"}, "logprobs": None, "finish_reason": None}
        ],
    }
    (third,) = events(writer.write(0, text("is")))
    assert third["choices"][0]["delta"] == {"content": "is"}


def test_the_last_chunk_has_the_reason_and_the_end_mark_follows():
    writer = ChunkWriter(answer(chat=False))
    writer.write(0, text("a"))
    data = writer.write(0, final("length"))
    assert data.endswith(b"}\n\n" + DONE)
    (last,) = events(data)
    assert last["object"] == "text_completion"
    assert last["choices"][0]["finish_reason"] == "length"
    assert writer.complete


def test_usage_is_a_last_chunk_without_choices_and_null_before():
    writer = ChunkWriter(answer(include_usage=True))
    before = events(writer.write(0, text("a")))
    *_, usage = events(writer.write(0, final()))
    assert [chunk["usage"] for chunk in before] == [None, None]
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_without_the_option_no_chunk_has_usage():
    writer = ChunkWriter(answer())
    data = writer.write(0, text("a")) + writer.write(0, final())
    assert all("usage" not in chunk for chunk in events(data))


def test_a_delta_that_shows_nothing_new_writes_nothing():
    writer = ChunkWriter(answer())
    writer.write(0, text("a"))
    assert writer.write(0, text("")) == b""


def test_prompts_and_choices_share_one_numbering():
    writer = ChunkWriter(answer(chat=False, prompts=2, choices=2))
    (chunk,) = events(writer.write(1, text("a", index=1)))
    assert chunk["choices"][0]["index"] == 3
    assert not writer.complete


def test_token_ids_are_shown_when_asked_for():
    writer = ChunkWriter(answer(chat=False, token_ids=True))
    (chunk,) = events(writer.write(0, text("a")))
    assert chunk["choices"][0]["token_ids"] == [1]


def test_infinite_log_probabilities_stay_valid_json():
    token = TokenText(token_id=1, token="a", logprob=float("-inf"))
    writer = ChunkWriter(answer(chat=False, top=0))
    delta = GenerateDelta(choices=[ChoiceDelta(text="a", logprobs=[token])])
    (chunk,) = events(writer.write(0, delta))
    assert chunk["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]


def test_a_choice_that_was_given_up_is_no_normal_end():
    writer = ChunkWriter(answer())
    with pytest.raises(EngineFailed):
        writer.write(0, final("abort"))


def test_an_error_event_is_openai_shaped_and_ends_the_stream():
    data = error_event(WorkerLost("lost\n"))
    assert data.startswith(b'data: {"error":{')
    assert data.endswith(b"}}\n\n" + DONE)
    assert json.loads(data[6:].removesuffix(DONE))["error"] == {
        "message": "lost\n",
        "type": "server_error",
        "param": None,
        "code": "worker_lost",
    }


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=8))
def test_joined_chunks_are_the_text_whatever_it_is(parts):
    writer = ChunkWriter(answer())
    data = b"".join(writer.write(0, text(part)) for part in parts)
    contents = [chunk["choices"][0]["delta"]["content"] for chunk in events(data)] if data else []
    assert "".join(contents) == "".join(parts)


def parsed(**fields):
    return GenerateDelta(choices=[ChoiceDelta(**fields)], prompt_tokens=4)


def deltas(data: bytes) -> list[dict]:
    return [chunk["choices"][0]["delta"] for chunk in events(data) if chunk["choices"]]


def test_thoughts_and_calls_are_chunks_of_their_own_in_their_order():
    writer = ChunkWriter(answer())
    writer.write(0, text("a"))
    call = ToolCallDelta(index=0, id="c1", name="f", arguments="{")
    data = writer.write(0, parsed(reasoning="Hm", text="So", tool_calls=[call]))
    data += writer.write(0, parsed(tool_calls=[ToolCallDelta(index=0, arguments="}")]))
    first = {"index": 0, "id": "c1", "type": "function"}
    assert deltas(data) == [
        {"reasoning": "Hm", "reasoning_content": "Hm"},
        {"content": "So"},
        {"tool_calls": [{**first, "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    ]


def test_thoughts_are_hidden_on_request():
    writer = ChunkWriter(answer(reasoning=False))
    writer.write(0, text("a"))
    assert deltas(writer.write(0, parsed(reasoning="Hm", text="So"))) == [{"content": "So"}]


def test_a_call_comes_before_the_end_of_its_choice():
    writer = ChunkWriter(answer(include_usage=True))
    call = ToolCallDelta(index=0, id="c1", name="f", arguments="{}")
    chunks = events(writer.write(0, parsed(tool_calls=[call], finish_reason="tool_calls")))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "tool_calls"]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_whole_answer_has_thoughts_and_calls():
    whole = WholeAnswer(answer())
    whole.add(0, parsed(reasoning="H", tool_calls=[ToolCallDelta(index=0, id="c1", name="f")]))
    whole.add(0, parsed(reasoning="m", tool_calls=[ToolCallDelta(index=0, arguments="{}")]))
    last = parsed(finish_reason="tool_calls")
    last.usage = msgspec.structs.replace(USAGE, reasoning_tokens=2)
    whole.add(0, last)
    body = json.loads(whole.encode())
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning": "Hm",
        "reasoning_content": "Hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
