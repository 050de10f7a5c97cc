"""Nearly right requests: each is decoded or refused with a documented status, whatever is in it."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import Code, ServingError
from runtime.rpc import CallInfo
from runtime.turns import at_once
from tests.unit.wire_fuzz import requests
from wire.inference_pb2 import ModelInferRequest
from wire.text_request import decode_text_request, encode_text_request
from wire.token_contract import decode_token_request, is_cancel, request_slot

REFUSALS = {Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED}
many = settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def decoded(decode: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """What `decode` returns, None for a refusal that a client may see."""
    try:
        return decode(*arguments, **more)
    except ServingError as error:
        if error.code not in REFUSALS or not error.message:
            raise
        return None


def text_request(*arguments: Any, **more: Any) -> Any:
    return at_once(decode_text_request(*arguments, **more))


@many
@given(requests(), st.booleans())
def test_a_text_request_is_decoded_or_refused(
    message: ModelInferRequest, streaming_rpc: bool
) -> None:
    found = decoded(text_request, message, CallInfo(method=""), streaming_rpc=streaming_rpc)
    if found is not None:
        request, selection = found
        again = encode_text_request(request, selection)
        assert again.model_name == message.model_name


@many
@given(requests())
def test_a_token_request_is_decoded_or_refused(message: ModelInferRequest) -> None:
    decoded(decode_token_request, message)
    decoded(request_slot, message)
    assert is_cancel(message) in (True, False)


@many
@given(requests(), st.data())
def test_a_damaged_message_is_no_message_or_another_one(
    message: ModelInferRequest, data: st.DataObject
) -> None:
    raw = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        other = ModelInferRequest.FromString(bytes(raw))
    except DecodeError:
        return
    decoded(text_request, other, CallInfo(method=""), streaming_rpc=True)


def test_the_strategy_makes_requests_of_both_kinds() -> None:
    seen = {True: 0, False: 0}

    @many
    @given(requests())
    def count(message: ModelInferRequest) -> None:
        found = decoded(text_request, message, CallInfo(method=""), streaming_rpc=True)
        seen[found is not None] += 1

    count()
    if min(seen.values()) < 40:
        pytest.fail(f"too one-sided: {seen}")
