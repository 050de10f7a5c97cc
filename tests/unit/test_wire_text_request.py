"""The text contract's requests: what clients of several servers send, and what is refused."""

import contextlib
import json
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest, Unsupported
from tests.unit.wire_requests import INFO, ask, decode, outputs_of, refusal, request_of, sampling_of
from tests.unit.wire_strategies import SAMPLING, TOKEN_ID, WORD
from wire.generate import GenerateRequest
from wire.inference_pb2 import ModelInferRequest
from wire.sampling import Sampling
from wire.tensors import add_input
from wire.text_inputs import NEEDS_LOGPROBS, OUTPUT_FLAGS, OUTPUTS, TEXT_INPUTS
from wire.text_request import OutputSelection, encode_text_request

JSON_OBJECT = st.dictionaries(WORD, st.none() | st.integers(0, 9) | WORD, max_size=3)
TOKEN_IDS = st.lists(TOKEN_ID, min_size=1, max_size=6).map(lambda ids: array("i", ids))
PROMPT = st.one_of(
    st.fixed_dictionaries({"prompt": st.text(max_size=20)}),
    st.fixed_dictionaries({"prompt_token_ids": TOKEN_IDS}),
    st.fixed_dictionaries(
        {
            "messages": st.lists(JSON_OBJECT, min_size=1, max_size=3),
            "tools": st.none() | st.lists(JSON_OBJECT, max_size=2),
            "tool_choice": st.none() | WORD | JSON_OBJECT,
            "chat_template_kwargs": JSON_OBJECT,
        }
    ),
)
REST = st.fixed_dictionaries(
    {
        "request_id": st.text(max_size=8),
        "model": st.text(max_size=8),
        "sampling": SAMPLING,
        "stream": st.booleans(),
        "echo": st.booleans(),
        "lora_name": st.none() | WORD,
        "priority": st.integers(0, 2**63 - 1),
        "cache_salt": st.none() | WORD,
        "session_id": st.none() | WORD,
        "session_ends": st.booleans(),
        "timeout_s": st.none() | st.integers(1, 10**12).map(lambda us: us / 1e6),
    }
)
SELECTION = st.builds(
    OutputSelection,
    outputs=st.sets(
        st.sampled_from(sorted({*OUTPUTS} - NEEDS_LOGPROBS - {"prompt_logprobs", "embedding"}))
    ).map(lambda names: tuple(name for name in OUTPUTS if name in names)),
    typed=st.booleans(),
    batched=st.booleans(),
)


@settings(deadline=None, max_examples=80)
@given(PROMPT, REST, SELECTION)
def test_a_request_comes_back_as_it_was(
    prompt: dict[str, Any], rest: dict[str, Any], selection: OutputSelection
) -> None:
    request = GenerateRequest(
        **prompt,
        **rest,
        deadline_s=INFO.deadline_s,
        separate_reasoning="reasoning_output" in selection.outputs,
        separate_tool_calls="tool_calls" in selection.outputs,
    )
    message = encode_text_request(request, selection)
    message = ModelInferRequest.FromString(message.SerializeToString())
    assert decode(message) == (request, selection)


# ---------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", ["text_input", "prompt", "QUERY"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_prompt_has_three_names_and_two_shapes(name: str, batched: bool) -> None:
    request, selection = decode(ask(**{name: "héllo"}, batched=batched))
    assert request.prompt == "héllo"
    assert selection.batched is batched
    assert (request.prompt_token_ids, request.messages) == (None, None)


def test_a_scalar_prompt_is_a_prompt() -> None:
    message = ModelInferRequest(model_name="m")
    add_input(message, "text_input", "BYTES", [], ["hi"])
    assert request_of(message).prompt == "hi"


def test_token_prompts_may_come_with_their_length() -> None:
    assert request_of(ask(input_ids=[5, 6], batched=True)).prompt_token_ids == array("i", [5, 6])
    assert request_of(ask(input_ids=[5, 6], input_lengths=2)).prompt_token_ids == array("i", [5, 6])
    assert refusal(ask(input_ids=[5, 6], input_lengths=3)).param == "input_lengths"


def test_messages_are_a_list_or_an_object_with_tools() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert request_of(ask(messages=json.dumps(messages))).messages == messages
    chat = {
        "messages": messages,
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    request = request_of(ask(messages=json.dumps(chat)))
    assert {name: getattr(request, name) for name in chat} == chat


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nope",
        "[]",
        "{}",
        "1",
        "null",
        "[1]",
        '{"messages": "hi"}',
        '{"messages": [{}], "tools": 1}',
        '{"messages": [{}], "functions": []}',
        "[" * 100_000,
        '["\\ud800"]',
    ],
)
def test_messages_that_are_none_are_refused(text: str) -> None:
    assert refusal(ask(messages=text)).param == "messages"


def test_exactly_one_prompt_is_asked_for() -> None:
    none = ModelInferRequest(model_name="m")
    assert refusal(none).param == "text_input"
    assert refusal(ask(text_input="a", input_ids=[1])).param == "input_ids"
    assert refusal(ask(text_input="a", messages="[{}]")).param == "messages"
    assert refusal(ask(text_input="a", prompt="a")).param == "prompt"


def test_prompts_of_the_wrong_form_are_refused() -> None:
    assert refusal(ask(text_input=b"\xff\xfe")).param == "text_input"
    assert refusal(ask(text_input=["a", "b"])).param == "text_input"
    assert refusal(ask(text_input=5)).param == "text_input"
    assert refusal(ask(input_ids="5")).param == "input_ids"
    deep = ModelInferRequest(model_name="m")
    add_input(deep, "text_input", "BYTES", [1, 1, 1], ["hi"])
    assert refusal(deep).param == "text_input"


def test_what_comes_as_parameters_reaches_the_request() -> None:
    message = ask(
        {
            "lora_name": "l",
            "priority": 3,
            "timeout": 1_500_000,
            "sequence_id": 42,
            "cache_salt": "s",
            "sequence_start": True,
            "triton_enable_empty_final_response": True,
            "my_own_parameter": 1.5,
        }
    )
    request = request_of(message)
    assert (request.request_id, request.model) == ("r", "m")
    assert (request.lora_name, request.priority, request.timeout_s) == ("l", 3, 1.5)
    assert (request.session_id, request.cache_salt) == ("42", "s")
    assert request.deadline_s == INFO.deadline_s


def test_zeros_and_empty_strings_mean_not_given() -> None:
    for parameters in ({"timeout": 0, "sequence_id": 0}, {"lora_name": "", "sequence_id": ""}):
        request = request_of(ask(parameters))
        assert (request.timeout_s, request.session_id, request.lora_name) == (None, None, None)


def test_a_priority_may_be_unsigned() -> None:
    message = ask()
    message.parameters["priority"].uint64_param = 7
    assert request_of(message).priority == 7
    message.parameters["priority"].uint64_param = 2**64 - 1
    assert refusal(message).param == "priority"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", True),
        ("sequence_id", 1.5),
        ("sequence_start", 1),
        ("sequence_end", "true"),
        ("priority", "1"),
        ("priority", -1),
        ("priority", True),
        ("timeout", "1"),
        ("timeout", -1),
        ("timeout", 1.5),
        ("lora_name", 5),
        ("cache_salt", 5),
        ("binary_data_output", "x"),
        ("triton_enable_empty_final_response", 1),
        ("triton_final_response", True),
        ("triton_anything", "x"),
    ],
)
def test_a_reserved_parameter_of_the_wrong_type_is_refused(name: str, value: Any) -> None:
    assert refusal(ask({name: value})).param == name


def test_a_reserved_parameter_without_a_value_is_refused() -> None:
    message = ask()
    message.parameters["priority"].SetInParent()
    assert refusal(message).param == "priority"


def test_an_unknown_parameter_of_an_unknown_type_is_ignored() -> None:
    message = ask()
    message.parameters["theirs"].SetInParent()
    assert request_of(message).prompt == "hi"


@pytest.mark.parametrize("name", ["stream", "streaming"])
def test_stream_has_two_names(name: str) -> None:
    assert request_of(ask(**{name: True})).stream
    assert request_of(ask({name: True})).stream
    assert not request_of(ask({name: True}, **{name: False})).stream
    assert not request_of(ask()).stream


def test_streaming_needs_the_streaming_rpc() -> None:
    assert refusal(ask(stream=True), streaming_rpc=False).param == "stream"
    assert decode(ask(stream=False), streaming_rpc=False)[0].prompt == "hi"


def test_a_stream_cannot_include_the_prompt() -> None:
    error = refusal(ask(stream=True, exclude_input_in_output=False))
    assert "exclude_input_in_output" in error.message
    assert error.param == "exclude_input_in_output"


@pytest.mark.parametrize(
    ("inputs", "echo"),
    [
        ({}, True),
        ({"exclude_input_in_output": False}, True),
        ({"exclude_input_in_output": True}, False),
        ({"sampling_param_exclude_input_from_output": True}, False),
        ({"stream": True}, False),
        ({"stream": True, "exclude_input_in_output": True}, False),
        ({"input_ids": [1]}, True),
        ({"messages": "[{}]"}, False),
        ({"messages": "[{}]", "exclude_input_in_output": False}, False),
    ],
)
def test_the_prompt_comes_first_unless_streamed_excluded_or_a_chat(
    inputs: dict[str, Any], echo: bool
) -> None:
    assert request_of(ask(**inputs)).echo is echo


@pytest.mark.parametrize("flag", OUTPUT_FLAGS)
def test_each_flag_switches_its_output_on(flag: str) -> None:
    text = set() if flag == "embedding_request" else {"text_output"}
    assert set(outputs_of(ask(**{flag: True}))) == {*text, *OUTPUT_FLAGS[flag]}
    assert outputs_of(ask(**{flag: False})) == ("text_output",)


def test_a_known_output_that_is_off_is_left_out_silently() -> None:
    everything = tuple(OUTPUTS)
    assert outputs_of(ask(outputs=everything)) == ("text_output",)
    assert outputs_of(ask(outputs=("logprobs",))) == ()
    assert outputs_of(ask(outputs=("num_input_tokens", "embedding"))) == ("embedding",)
    message = ask(outputs=("finish_reason",), return_finish_reason=True)
    assert outputs_of(message) == ("finish_reason",)


def test_asking_for_log_probabilities_as_an_output_does_not_switch_them_on() -> None:
    assert sampling_of(ask(outputs=("logprobs",), return_logprobs=True)).logprobs is None
    assert sampling_of(ask(outputs=("cumulative_logprob",))).logprobs is None
    assert sampling_of(ask(outputs=("output_log_probs", "cum_log_probs"))).logprobs is None
    assert sampling_of(ask(return_log_probs=True)).logprobs == 0
    assert sampling_of(ask(return_cumulative_logprob=True)).logprobs == 0


def test_an_unknown_output_is_refused() -> None:
    assert refusal(ask(outputs=("text_output", "text"))).param == "text"


def test_an_unknown_input_is_refused() -> None:
    error = refusal(ask(txt="hi"))
    assert error.param == "txt"


def test_images_are_not_taken() -> None:
    with pytest.raises(Unsupported) as caught:
        decode(ask(image="aGk="))
    assert caught.value.param == "image"


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("beam_width", 1, 4),
        ("length_penalty", 1.0, 0.5),
        ("sampling_param_best_of", 1, 2),
        ("return_context_logits", False, True),
    ],
)
def test_features_not_offered_are_taken_only_when_off(name: str, neutral: Any, other: Any) -> None:
    assert request_of(ask(**{name: neutral})).prompt == "hi"
    with pytest.raises(Unsupported) as caught:
        decode(ask(**{name: other}))
    assert caught.value.param == name


def test_outputs_in_other_forms_are_refused_by_name() -> None:
    message = ask(outputs=("text_output",))
    message.outputs[0].parameters["classification"].int64_param = 3
    assert refusal(message).param == "text_output"
    message = ask(outputs=("text_output",))
    message.outputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="'text_output'"):
        decode(message)


def test_inputs_whose_answer_always_comes_are_taken_and_change_nothing() -> None:
    plain = decode(ask())
    assert decode(ask(return_stop_reason=True, return_usage=False)) == plain


def test_typed_contents_are_remembered() -> None:
    assert decode(ask(typed=True, temperature=0.5))[1].typed
    assert not decode(ask())[1].typed


def test_a_wrong_flag_is_refused() -> None:
    assert refusal(ask(stream=5)).param == "stream"
    assert refusal(ask(stream=0.5)).param == "stream"
    assert refusal(ask({"return_logprobs": "perhaps"})).param == "return_logprobs"


def test_a_negative_priority_cannot_travel() -> None:
    request = GenerateRequest(
        request_id="", model="m", sampling=Sampling(), prompt="a", priority=-1
    )
    with pytest.raises(InvalidRequest, match="priority"):
        encode_text_request(request, OutputSelection())


def test_a_triton_client_of_tensorrt_llm_is_understood() -> None:
    message = ask(
        batched=True,
        text_input="hi",
        max_tokens=5,
        bad_words=[""],
        stop_words=["END"],
        beam_width=1,
        end_id=2,
        pad_id=0,
        temperature=0.5,
        stream=True,
        return_log_probs=False,
    )
    assert sampling_of(message) == Sampling(
        max_tokens=5, stop=("END",), stop_token_ids=(2,), temperature=0.5
    )


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(sorted(TEXT_INPUTS)), st.binary(max_size=12), max_size=5),
    st.sampled_from(["BYTES", "INT32", "BOOL", "FP32", "UINT64", "FP16"]),
    st.lists(st.integers(-1, 3), max_size=3),
)
def test_no_bytes_break_the_decoder(
    inputs: dict[str, bytes], datatype: str, shape: list[int]
) -> None:
    message = ModelInferRequest(model_name="m")
    for name, raw in inputs.items():
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    with contextlib.suppress(InvalidRequest, Unsupported):
        assert decode(message)[0].model == "m"
