"""The text contract's responses: shapes, values, and the way back to a delta."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import InferResult, service_pb2

from runtime.errors import (
    ContextLengthExceeded,
    InternalError,
    ModelNotReady,
    Overloaded,
    ServingError,
)
from tests.unit.wire_strategies import TOKEN_ID
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, TokenText, Usage
from wire.inference_pb2 import ModelInferResponse, ModelStreamInferResponse
from wire.sampling import Sampling
from wire.tensors import add_output
from wire.text_inputs import OUTPUTS, OutputSelection
from wire.text_response import (
    decode_text_response,
    encode_text_response,
    stream_error,
    stream_response,
)

EVERYTHING = OutputSelection(outputs=tuple(OUTPUTS))
USAGE = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)


def request(n: int = 1) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="m", sampling=Sampling(n=n), prompt="a")


def token(token_id: int, logprob: float, rank: int | None, *others: TokenText) -> TokenText:
    return TokenText(
        token_id=token_id, token=f"t{token_id}", logprob=logprob, rank=rank, top=others
    )


def result(
    delta: GenerateDelta, selection: OutputSelection = EVERYTHING, n: int = 1
) -> InferResult:
    """The response as tritonclient sees it."""
    message = encode_text_response(request(n), selection, delta)
    return InferResult(service_pb2.ModelInferResponse.FromString(message.SerializeToString()))


def values(read: InferResult, name: str) -> tuple[tuple[int, ...], list[Any]]:
    array = read.as_numpy(name)
    return array.shape, array.ravel().tolist()


def test_a_delta_has_every_output_that_is_switched_on() -> None:
    likelier = token(9, -0.25, 1)
    delta = GenerateDelta(
        choices=[
            ChoiceDelta(
                text=" Pärïs",
                token_ids=[5, 6],
                logprobs=[token(5, -0.5, 2, likelier), token(6, -math.inf, None)],
                cumulative_logprob=-0.75,
            )
        ],
        prompt_tokens=3,
    )
    read = result(delta)
    assert values(read, "text_output") == ((1,), [" Pärïs".encode()])
    assert values(read, "finish_reason") == ((1,), [b"None"])
    assert values(read, "output_ids") == ((2,), [5, 6])
    assert values(read, "cumulative_logprob") == ((1,), [-0.75])
    assert values(read, "cum_log_probs") == ((1,), [-0.75])
    assert values(read, "output_log_probs") == ((1, 2), [-0.5, -9999.0])
    assert values(read, "num_input_tokens") == ((1,), [3])
    assert values(read, "num_output_tokens") == ((1,), [2])
    assert json.loads(values(read, "logprobs")[1][0]) == [
        {
            "5": {"logprob": -0.5, "rank": 2, "decoded_token": "t5"},
            "9": {"logprob": -0.25, "rank": 1, "decoded_token": "t9"},
        },
        {"6": {"logprob": -9999.0, "rank": None, "decoded_token": "t6"}},
    ]


def test_a_plain_delta_is_text_and_the_final_flag() -> None:
    delta = GenerateDelta(choices=[ChoiceDelta(text="a", token_ids=[5])])
    message = stream_response(request(), OutputSelection(), delta).infer_response
    assert [it.name for it in message.outputs] == ["text_output"]
    assert message.raw_output_contents[:] == [b"\1\0\0\0a"]
    assert (message.model_name, message.model_version, message.id) == ("m", "1", "r")
    assert message.parameters.keys() == {"triton_final_response"}
    assert message.parameters["triton_final_response"].bool_param is False


def test_the_final_response_has_the_reason_the_flag_and_the_counts() -> None:
    delta = GenerateDelta(
        choices=[ChoiceDelta(finish_reason="stop", stop_reason="END")], prompt_tokens=3, usage=USAGE
    )
    message = encode_text_response(request(), EVERYTHING, delta)
    assert message.parameters["triton_final_response"].bool_param is True
    assert message.parameters["stop_reason"].string_param == "END"
    counts = ("prompt_tokens", "completion_tokens", "cached_tokens")
    assert [message.parameters[name].int64_param for name in counts] == [3, 2, 1]
    assert values(result(delta), "finish_reason") == ((1,), [b"stop"])
    assert values(result(delta), "logprobs") == ((1,), [b"null"])


def test_choices_stand_side_by_side_and_silent_ones_are_empty() -> None:
    delta = GenerateDelta(
        choices=[
            ChoiceDelta(index=2, text="c", token_ids=[7, 8], finish_reason="length"),
            ChoiceDelta(index=0, text="a", token_ids=[5], cumulative_logprob=-1.0),
        ],
        prompt_tokens=3,
    )
    read = result(delta, n=3)
    assert values(read, "text_output") == ((3,), [b"a", b"", b"c"])
    assert values(read, "finish_reason") == ((3,), [b"None", b"None", b"length"])
    assert values(read, "output_ids") == ((3, 2), [5, -1, -1, -1, 7, 8])
    assert values(read, "num_output_tokens") == ((3,), [1, 0, 2])
    assert values(read, "logprobs") == ((3,), [b"null"] * 3)
    # tritonclient reads an empty tensor as None; its shape is what counts.
    shapes = {it.name: list(it.shape) for it in read.get_response().outputs}
    assert shapes["output_log_probs"] == [3, 0]
    first, *others = values(read, "cumulative_logprob")[1]
    assert first == -1.0
    assert all(math.isnan(it) for it in others)


def test_clients_that_batch_get_batched_shapes() -> None:
    delta = GenerateDelta(choices=[ChoiceDelta(text="a", token_ids=[5, 6])])
    read = result(delta, msgspec.structs.replace(EVERYTHING, batched=True))
    assert values(read, "text_output") == ((1, 1), [b"a"])
    assert values(read, "output_ids") == ((1, 2), [5, 6])


def test_log_probabilities_of_several_choices_are_padded() -> None:
    delta = GenerateDelta(
        choices=[
            ChoiceDelta(index=0, token_ids=[5], logprobs=[token(5, -0.5, 1)]),
            ChoiceDelta(index=1, token_ids=[5, 6], logprobs=[token(5, -1, 2), token(6, -2, 1)]),
        ]
    )
    read = result(delta, msgspec.structs.replace(EVERYTHING, batched=True), n=2)
    shape, (first, padding, *second) = values(read, "output_log_probs")
    assert shape == (1, 2, 2)
    assert (first, *second) == (-0.5, -1.0, -2.0)
    assert math.isnan(padding)


def test_clients_that_send_typed_contents_get_typed_contents() -> None:
    delta = GenerateDelta(choices=[ChoiceDelta(text="a", token_ids=[5])], prompt_tokens=3)
    message = encode_text_response(
        request(), msgspec.structs.replace(EVERYTHING, typed=True), delta
    )
    assert not message.raw_output_contents
    by_name = {it.name: it.contents for it in message.outputs}
    assert by_name["text_output"].bytes_contents[:] == [b"a"]
    assert by_name["output_ids"].int_contents[:] == [5]
    assert by_name["num_input_tokens"].uint_contents[:] == [3]


def test_a_response_may_have_no_outputs_at_all() -> None:
    delta = GenerateDelta(choices=[ChoiceDelta(text="a")])
    message = encode_text_response(request(), OutputSelection(outputs=()), delta)
    assert not message.outputs
    assert message.id == "r"


TOKEN = st.builds(
    TokenText,
    token_id=TOKEN_ID,
    token=st.text(max_size=4),
    logprob=st.floats(-100, 0),
    rank=st.integers(2, 100),
)


def with_top(tokens: list[TokenText]) -> TokenText:
    """The sampled token, first, with all of them as the likeliest ones by rank."""
    ordered = tuple(sorted(tokens, key=lambda it: it.rank or 0))
    return msgspec.structs.replace(tokens[0], top=ordered)


TOKENS = st.lists(
    TOKEN, min_size=1, max_size=3, unique_by=(lambda it: it.token_id, lambda it: it.rank)
).map(with_top)


def choices(n: int) -> st.SearchStrategy[list[ChoiceDelta]]:
    choice = st.builds(
        ChoiceDelta,
        index=st.integers(0, n - 1),
        text=st.text(min_size=1, max_size=6),
        token_ids=st.lists(TOKEN_ID, min_size=1, max_size=4),
        logprobs=st.none() | st.lists(TOKENS, max_size=2),
        cumulative_logprob=st.none() | st.floats(-100, 0, width=32),
        finish_reason=st.none() | st.sampled_from(["stop", "length"]),
        stop_reason=st.none() | TOKEN_ID | st.text(max_size=3),
    )
    return st.lists(choice, max_size=n, unique_by=lambda it: it.index).map(
        lambda found: sorted(found, key=lambda it: it.index)
    )


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 3).flatmap(lambda n: st.tuples(st.just(n), choices(n))),
    st.integers(0, 1000),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_delta_comes_back_as_it_was(
    given_choices: tuple[int, list[ChoiceDelta]],
    prompt_tokens: int,
    final: bool,
    typed: bool,
    batched: bool,
) -> None:
    n, found = given_choices
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=5) if final else None
    delta = GenerateDelta(choices=found, prompt_tokens=prompt_tokens, usage=usage)
    selection = msgspec.structs.replace(EVERYTHING, typed=typed, batched=batched)
    message = stream_response(request(n), selection, delta)
    message = ModelStreamInferResponse.FromString(message.SerializeToString())
    assert decode_text_response(message) == delta


def test_the_sampled_token_stays_first_and_the_likeliest_are_sorted_by_rank() -> None:
    other = token(9, -0.25, 1)
    sampled = token(5, -4.0, 7, other)
    delta = GenerateDelta(choices=[ChoiceDelta(token_ids=[5], logprobs=[sampled])])
    read = decode_text_response(encode_text_response(request(), EVERYTHING, delta))
    assert read.choices[0].logprobs is not None
    (position,) = read.choices[0].logprobs
    assert position.token_id == 5
    assert [it.token_id for it in position.top] == [9, 5]


@pytest.mark.parametrize(
    "error",
    [
        ContextLengthExceeded("too long", param="input_ids"),
        Overloaded("busy"),
        ModelNotReady("not yet"),
        InternalError(""),
    ],
)
def test_an_error_in_band_is_rebuilt_with_its_class_and_field(error: ServingError) -> None:
    message = ModelStreamInferResponse.FromString(stream_error("r", error).SerializeToString())
    assert message.infer_response.id == "r"
    assert message.error_message
    assert message.infer_response.parameters["triton_final_response"].bool_param is True
    with pytest.raises(type(error)) as caught:
        decode_text_response(message)
    assert type(caught.value) is type(error)
    assert caught.value.param == error.param


def test_another_servers_error_is_an_internal_one_with_its_text() -> None:
    with pytest.raises(InternalError, match="boom"):
        decode_text_response(ModelStreamInferResponse(error_message="boom"))


def foreign(*, finish: str = "", typed: bool = True) -> ModelInferResponse:
    """A response as Dynamo's server writes it: typed, without final flag or usage."""
    message = ModelInferResponse(model_name="m", id="r")
    add_output(message, "text_output", "BYTES", [1], ["hi"], typed=typed)
    add_output(message, "finish_reason", "BYTES", [1], [finish], typed=typed)
    return message


def test_responses_of_other_servers_are_understood() -> None:
    going_on = decode_text_response(ModelStreamInferResponse(infer_response=foreign()))
    assert going_on == GenerateDelta(choices=[ChoiceDelta(text="hi")])
    ended = decode_text_response(ModelStreamInferResponse(infer_response=foreign(finish="stop")))
    assert ended.final
    assert ended.choices[0].finish_reason == "stop"
    assert decode_text_response(foreign()).final


def test_a_final_flag_without_counts_ends_the_request() -> None:
    message = foreign(typed=False)
    message.parameters["triton_final_response"].bool_param = True
    assert decode_text_response(ModelStreamInferResponse(infer_response=message)).final
    message.parameters["triton_final_response"].bool_param = False
    assert not decode_text_response(message).final


@pytest.mark.parametrize(
    ("name", "datatype", "wrong"),
    [
        ("logprobs", "BYTES", b"nope"),
        ("logprobs", "BYTES", b'[{"x": 1}]'),
        ("finish_reason", "BYTES", b"\xff"),
        ("text_output", "INT32", 5),
    ],
)
def test_a_malformed_response_is_an_internal_error(name: str, datatype: str, wrong: Any) -> None:
    message = ModelInferResponse()
    add_output(message, name, datatype, [1], [wrong])
    with pytest.raises(InternalError, match="malformed"):
        decode_text_response(message)
