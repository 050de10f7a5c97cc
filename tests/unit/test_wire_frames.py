"""Step frames: what is written is what is read, merged where it may be."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ContextLengthExceeded, InternalError, ServingError, WorkerLost
from wire.frames import FrameWriter, read_frame
from wire.inference_pb2 import ModelStreamInferResponse
from wire.tokens import FinishReason, TokenDelta, TokenLogprob

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
LOGPROB = st.builds(
    TokenLogprob,
    token_id=st.integers(0, 2**31 - 1),
    logprob=st.floats(-100, 0),
    rank=st.none() | st.integers(1, 10**6),
)
POSITIONS = st.none() | st.lists(st.lists(LOGPROB, max_size=3), max_size=3)
DELTA = st.builds(
    TokenDelta,
    index=st.integers(0, 127),
    token_ids=IDS,
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stop_reason=st.none() | st.integers(0, 2**31 - 1) | st.text(max_size=4),
    logprobs=POSITIONS,
    prompt_logprobs=POSITIONS,
    cached_tokens=st.none() | st.integers(0, 2**31 - 1),
    queued_s=st.none() | st.floats(0, 1e6),
)
SLOT = st.integers(0, 2**32 - 1)


def sent(writer: FrameWriter) -> list[tuple[int, TokenDelta | ServingError]]:
    frame = writer.take("m")
    return read_frame(ModelStreamInferResponse.FromString(frame.SerializeToString()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SLOT, DELTA), max_size=20, unique_by=lambda row: row[0]))
def test_rows_come_back_as_they_were_in_the_order_written(
    rows: list[tuple[int, TokenDelta]],
) -> None:
    writer = FrameWriter()
    for slot, delta in rows:
        writer.add(slot, delta)
    assert len(writer) == len(rows)
    assert sent(writer) == rows
    assert len(writer) == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), IDS, st.booleans()), max_size=40))
def test_merging_keeps_every_choices_tokens_in_order(
    steps: list[tuple[int, int, list[int], bool]],
) -> None:
    writer = FrameWriter()
    expected: dict[tuple[int, int], list[int]] = {}
    read: dict[tuple[int, int], list[int]] = {}

    def collect() -> None:
        for slot, row in sent(writer):
            assert isinstance(row, TokenDelta)
            read.setdefault((slot, row.index), []).extend(row.token_ids)

    for slot, index, ids, take in steps:
        writer.add(slot, TokenDelta(index=index, token_ids=ids))
        expected.setdefault((slot, index), []).extend(ids)
        if take:
            collect()
    collect()
    assert read == expected


def test_deltas_of_one_choice_merge_into_one_row() -> None:
    writer = FrameWriter()
    token = TokenLogprob(5, -0.5, 1)
    ids = [1]
    writer.add(7, TokenDelta(token_ids=ids, logprobs=[[token]], cached_tokens=4, queued_s=0.5))
    writer.add(8, TokenDelta(token_ids=[9]))
    writer.add(
        7,
        TokenDelta(
            token_ids=[2, 3],
            logprobs=[[token], [token]],
            finish_reason=FinishReason.STOP,
            stop_reason=3,
        ),
    )
    assert len(writer) == 2
    assert ids == [1]
    whole = TokenDelta(
        token_ids=[1, 2, 3],
        logprobs=[[token]] * 3,
        finish_reason=FinishReason.STOP,
        stop_reason=3,
        cached_tokens=4,
        queued_s=0.5,
    )
    assert sent(writer) == [(7, whole), (8, TokenDelta(token_ids=[9]))]


def test_a_slot_used_again_in_the_same_frame_is_another_row() -> None:
    writer = FrameWriter()
    writer.add(1, TokenDelta(token_ids=[1], finish_reason=FinishReason.LENGTH))
    writer.add(1, TokenDelta(token_ids=[2]))
    writer.fail(1, WorkerLost("gone"))
    writer.add(1, TokenDelta(token_ids=[3]))
    rows = sent(writer)
    assert [row.token_ids for _, row in rows if isinstance(row, TokenDelta)] == [[1], [2], [3]]
    assert isinstance(rows[2][1], WorkerLost)


def test_an_error_row_keeps_its_class_text_and_field_and_comes_after_the_tokens() -> None:
    writer = FrameWriter()
    writer.add(3, TokenDelta(token_ids=[1]))
    writer.fail(3, ContextLengthExceeded("too long", param="input_ids"))
    (_, delta), (slot, error) = sent(writer)
    assert delta == TokenDelta(token_ids=[1])
    assert slot == 3
    assert type(error) is ContextLengthExceeded
    assert (error.message, error.param) == ("too long", "input_ids")


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_log_probabilities_json_cannot_carry_are_clamped(value: float) -> None:
    writer = FrameWriter()
    entry = [[TokenLogprob(1, value, 9)]]
    writer.add(0, TokenDelta(token_ids=[1], logprobs=entry, prompt_logprobs=entry))
    ((_, delta),) = sent(writer)
    clamped = [[TokenLogprob(1, -9999.0, 9)]]
    assert isinstance(delta, TokenDelta)
    assert delta.logprobs == delta.prompt_logprobs == clamped


def test_plain_rows_carry_neither_choices_nor_json() -> None:
    writer = FrameWriter()
    for slot in range(3):
        writer.add(slot, TokenDelta(token_ids=[slot, 256]))
    frame = writer.take("m").infer_response
    assert frame.model_name == "m"
    assert [(it.name, it.datatype, list(it.shape)) for it in frame.outputs] == [
        ("slot", "UINT32", [3]),
        ("n_tok", "UINT32", [3]),
        ("token_ids", "UINT32", [6]),
        ("finish", "UINT8", [3]),
    ]
    assert frame.raw_output_contents[0] == b"\0\0\0\0\1\0\0\0\2\0\0\0"
    assert frame.raw_output_contents[2][4:8] == b"\0\1\0\0"


def test_an_empty_frame_has_no_rows() -> None:
    assert sent(FrameWriter()) == []


def broken(name: str, raw: bytes) -> ModelStreamInferResponse:
    writer = FrameWriter()
    writer.add(1, TokenDelta(index=2, token_ids=[1, 2], cached_tokens=1))
    frame = writer.take()
    names = [output.name for output in frame.infer_response.outputs]
    frame.infer_response.raw_output_contents[names.index(name)] = raw
    return frame


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("slot", b""),
        ("slot", b"123"),
        ("n_tok", b"\1\0\0\0"),
        ("token_ids", b""),
        ("finish", b"\x63"),
        ("finish", b"\0\0"),
        ("choice", b""),
        ("extras", b"\4\0\0\0nope"),
        ("extras", b'\1\0\0\0{"0":{"cached_tokens":"x"}}'),
    ],
)
def test_a_broken_column_is_an_internal_error(name: str, raw: bytes) -> None:
    with pytest.raises(InternalError, match="malformed step frame"):
        read_frame(broken(name, raw))


def test_a_missing_column_is_an_internal_error() -> None:
    frame = broken("slot", b"\1\0\0\0")
    del frame.infer_response.outputs[0], frame.infer_response.raw_output_contents[0]
    with pytest.raises(InternalError, match="slot"):
        read_frame(frame)
    with pytest.raises(InternalError, match="out of luck"):
        read_frame(ModelStreamInferResponse(error_message="out of luck"))
