"""The token contract: requests and responses come back as they were; what is wrong is named."""

import json
import math
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InternalError, InvalidRequest
from tests.unit.wire_strategies import SAMPLING, WORD
from wire.generate import Usage
from wire.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from wire.sampling import Sampling
from wire.tensors import add_input
from wire.token_contract import (
    decode_token_request,
    decode_token_response,
    encode_cancel,
    encode_token_request,
    encode_token_response,
    is_cancel,
    request_slot,
)
from wire.tokens import FinishReason, TokenDelta, TokenLogprob, TokenRequest

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)
REQUEST = st.builds(
    TokenRequest,
    request_id=st.text(max_size=8),
    token_ids=IDS.map(lambda ids: array("i", ids)),
    sampling=SAMPLING,
    lora_name=st.none() | WORD,
    priority=st.integers(0, 2**63 - 1),
    cache_salt=st.none() | WORD,
    session_id=st.none() | WORD,
    data_parallel_rank=st.none() | st.integers(0, 1000),
    traceparent=st.none() | st.text(max_size=8),
)


@settings(deadline=None, max_examples=60)
@given(REQUEST, st.none() | st.integers(0, 2**32 - 1))
def test_a_request_comes_back_as_it_was(request: TokenRequest, slot: int | None) -> None:
    message = encode_token_request(request, "m", slot=slot)
    message = ModelInferRequest.FromString(message.SerializeToString())
    assert message.model_name == "m"
    assert decode_token_request(message) == request
    assert request_slot(message) == slot
    assert not is_cancel(message)


def ask(
    datatype: str = "INT32",
    shape: tuple[int, ...] = (2,),
    values: Any = (5, 6),
    *,
    typed: bool = False,
    **parameters: Any,
) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", id="r")
    add_input(message, "input_ids", datatype, shape, values, typed=typed)
    for name, value in parameters.items():
        kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
        setattr(message.parameters[name], f"{kind}_param", value)
    return message


@pytest.mark.parametrize("datatype", ["INT32", "INT64", "UINT32"])
@pytest.mark.parametrize("shape", [(2,), (1, 2)])
@pytest.mark.parametrize("typed", [False, True])
def test_a_plain_client_may_write_its_ids_in_several_ways(
    datatype: str, shape: tuple[int, ...], typed: bool
) -> None:
    request = decode_token_request(
        ask(datatype, shape, [[5, 6]] if 1 in shape else [5, 6], typed=typed)
    )
    assert request.token_ids == array("i", [5, 6])
    assert request.sampling == Sampling(max_tokens=16)


def test_a_single_tensor_beats_the_json_which_beats_a_parameter() -> None:
    message = ask(temperature=0.25, top_p=0.25, top_k=1)
    sampling = {"temperature": "0.5", "top_p": 0.5, "max_tokens": None}
    add_input(message, "sampling_parameters", "BYTES", [1], [json.dumps(sampling)])
    add_input(message, "temperature", "FP32", [1], [0.75])
    assert decode_token_request(message).sampling == Sampling(
        temperature=0.75, top_p=0.5, top_k=1, max_tokens=None
    )


WRONG = {
    "no ids": (ModelInferRequest(), "input_ids"),
    "empty": (ask(shape=(0,), values=[]), "input_ids"),
    "negative": (ask(values=[1, -1]), "input_ids"),
    "too large": (ask("INT64", values=[1, 2**31]), "input_ids"),
    "two rows": (ask(shape=(2, 1)), "input_ids"),
    "three ranks": (ask(shape=(1, 1, 2)), "input_ids"),
    "floats": (ask("FP32"), "input_ids"),
    "priority": (ask(priority=-1), "priority"),
    "priority text": (ask(priority="1"), "priority"),
    "lora": (ask(lora_name=1), "lora_name"),
    "salt": (ask(cache_salt=True), "cache_salt"),
    "rank": (ask(data_parallel_rank=-1), "data_parallel_rank"),
    "rank text": (ask(data_parallel_rank="0"), "data_parallel_rank"),
    "traceparent": (ask(traceparent=1), "traceparent"),
    "rank bool": (ask(data_parallel_rank=True), "data_parallel_rank"),
    "reserved": (ask(triton_foo=True), "triton_foo"),
    "nan": (ask(temperature=math.nan), "temperature"),
    "infinite": (ask(repetition_penalty=math.inf), "repetition_penalty"),
    "huge": (ask(seed="9" * 30), "seed"),
    "mixed": (
        ModelInferRequest(
            inputs=[
                ModelInferRequest.InferInputTensor(
                    name="input_ids",
                    datatype="INT32",
                    shape=[1],
                    contents=InferTensorContents(int_contents=[1]),
                )
            ],
            raw_input_contents=[b"1234"],
        ),
        "input_ids",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_refused_by_the_fields_name(case: str) -> None:
    message, param = WRONG[case]
    with pytest.raises(InvalidRequest) as caught:
        decode_token_request(message)
    assert caught.value.param == param


def test_text_is_not_part_of_this_contract() -> None:
    message = ask()
    add_input(message, "text_input", "BYTES", [1], ["hi"])
    with pytest.raises(InvalidRequest, match="text_input"):
        decode_token_request(message)


@pytest.mark.parametrize("slot", [-1, 2**32, "1", True, 1.0])
def test_a_slot_is_a_uint32(slot: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_slot(ask(penstock_slot=slot))
    assert caught.value.param == "penstock_slot"


def test_a_cancel_names_its_slot() -> None:
    message = ModelInferRequest.FromString(encode_cancel(2**32 - 1).SerializeToString())
    assert is_cancel(message)
    assert request_slot(message) == 2**32 - 1
    assert not is_cancel(ask())


def distinct(position: list[TokenLogprob]) -> bool:
    return len({it.token_id for it in position}) == len(position)


POSITION = st.lists(
    st.builds(
        TokenLogprob,
        token_id=st.integers(0, 2**31 - 1),
        logprob=st.floats(-100, 0),
        rank=st.none() | st.integers(1, 10**6),
    ),
    max_size=3,
).filter(distinct)
DELTA = st.builds(
    TokenDelta,
    index=st.integers(0, 127),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=5),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stop_reason=st.none() | st.integers(0, 2**31 - 1) | st.text(max_size=4),
    logprobs=st.none() | st.lists(POSITION, max_size=3),
    prompt_logprobs=st.none() | st.lists(POSITION, max_size=3),
)
USAGE = st.builds(
    Usage,
    prompt_tokens=st.integers(0, 10**9),
    completion_tokens=st.integers(0, 10**9),
    cached_tokens=st.integers(0, 10**9),
)


@settings(deadline=None, max_examples=60)
@given(DELTA, st.booleans(), st.none() | USAGE, st.text(max_size=8))
def test_a_response_comes_back_as_it_was(
    delta: TokenDelta, final: bool, usage: Usage | None, request_id: str
) -> None:
    message = encode_token_response(
        model="m", request_id=request_id, delta=delta, final=final, usage=usage
    )
    read = decode_token_response(ModelInferResponse.FromString(message.SerializeToString()))
    if usage is not None:
        assert read.delta.cached_tokens == usage.cached_tokens
        read.delta.cached_tokens = None
    assert read == (request_id, delta, final, usage)


def test_a_first_delta_says_what_was_cached_and_how_long_it_queued() -> None:
    delta = TokenDelta(token_ids=[1], cached_tokens=32, queued_s=0.25)
    message = encode_token_response(model="m", request_id="", delta=delta, final=False, usage=None)
    assert decode_token_response(message).delta == delta


def test_a_response_says_none_until_the_end_and_clamps_what_json_cannot_carry() -> None:
    delta = TokenDelta(token_ids=[1], logprobs=[[TokenLogprob(1, -math.inf, None)]])
    message = encode_token_response(model="m", request_id="r", delta=delta, final=False, usage=None)
    assert list(message.outputs[0].shape) == [1, 1]
    assert message.raw_output_contents[1] == b"\4\0\0\0None"
    assert json.loads(message.raw_output_contents[2][4:]) == [
        {"1": {"logprob": -9999.0, "rank": None}}
    ]
    assert message.parameters["triton_final_response"].bool_param is False


def test_a_foreign_response_is_an_internal_error() -> None:
    message = encode_token_response(
        model="m", request_id="r", delta=TokenDelta(token_ids=[1]), final=True, usage=None
    )
    message.raw_output_contents[1] = b"\4\0\0\0nope"
    with pytest.raises(InternalError, match="malformed"):
        decode_token_response(message)
    with pytest.raises(InternalError, match="malformed"):
        decode_token_response(ModelInferResponse())
