"""OpenAI's JSON to GenerateRequest: what is taken, what is refused, and which field is named."""

import json

import msgspec
import pytest

from gateway_http.chat import chat_request
from gateway_http.completions import completion_requests
from gateway_http.logprobs import chat_logprobs
from gateway_http.openai import checked_body, decode_json
from gateway_http.origin import Origin
from gateway_http.schema import ChatCompletionRequest, CompletionRequest
from runtime.errors import InvalidRequest, UnsupportedValue
from runtime.turns import at_once
from wire.generate import TokenText

ORIGIN = Origin(request_id="r1", endpoint="/v1/test")
USER = {"role": "user", "content": "Hi"}


def chat(**fields):
    body = {"model": "m", "messages": [USER], **fields}
    decoded = checked_body(decode_json(json.dumps(body).encode(), ChatCompletionRequest))
    return at_once(chat_request(decoded, ORIGIN))


def completions(**fields):
    body = {"model": "m", "prompt": "Hi", **fields}
    decoded = checked_body(decode_json(json.dumps(body).encode(), CompletionRequest))
    return completion_requests(decoded, ORIGIN, max_prompts=4)


def test_a_chat_without_a_limit_runs_to_the_end_of_the_context():
    assert chat().sampling.max_tokens is None


def test_a_completion_without_a_limit_has_sixteen_tokens():
    assert completions()[0].sampling.max_tokens == 16


def test_max_completion_tokens_wins_over_max_tokens():
    assert chat(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


def test_sampling_fields_reach_the_sampling_parameters():
    sampling = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1,
        min_tokens=2,
        max_tokens=9,
        seed=7,
        stop=["a", "b", "c", "d", "e", "f"],
        stop_token_ids=[3],
        ignore_eos=True,
        logit_bias={"12": -5},
        bad_words=["x"],
        n=3,
        skip_special_tokens=False,
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.1, 7)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1, 1)
    assert (sampling.min_tokens, sampling.max_tokens, sampling.n) == (2, 9, 3)
    assert sampling.stop_strings == ("a", "b", "c", "d", "e", "f")
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((3,), True)
    assert (sampling.logit_bias, sampling.bad_words) == ({12: -5.0}, ("x",))
    assert sampling.skip_special_tokens is False


def test_a_single_stop_string_is_taken_as_it_is():
    assert chat(stop="END").sampling.stop_strings == ("END",)


def test_chat_log_probabilities_count_the_likeliest_tokens():
    assert chat().sampling.logprobs is None
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).sampling.logprobs == 4
    assert chat(logprobs=False).sampling.logprobs is None
    assert completions(logprobs=3)[0].sampling.logprobs == 3


def test_response_formats_become_structured_outputs():
    schema = {"type": "object"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert chat(response_format=form).sampling.structured_outputs == {"json": schema}
    wanted = {"type": "json_object"}
    assert chat(response_format=wanted).sampling.structured_outputs == {"json_object": True}
    assert chat(response_format={"type": "text"}).sampling.structured_outputs is None
    assert chat(structured_outputs={"regex": "a+"}).sampling.structured_outputs == {"regex": "a+"}


def test_template_options_reach_the_chat_template():
    request = chat(
        chat_template_kwargs={"enable_thinking": False},
        add_generation_prompt=False,
        reasoning_effort="low",
    )
    assert request.chat_template_kwargs == {
        "enable_thinking": False,
        "add_generation_prompt": False,
        "reasoning_effort": "low",
    }


def test_null_means_not_given():
    names = [name for name in ChatCompletionRequest.__struct_fields__ if name not in ("messages",)]
    fields = {name: None for name in names if name != "model"}
    assert chat(**fields) == chat()


def test_unknown_fields_are_ignored():
    assert chat(store=True, metadata={"a": "b"}, service_tier="auto") == chat()


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens"),
    [
        ("a", ["a"], [None]),
        (["a", "b"], ["a", "b"], [None, None]),
        ([1, 2], [None], [[1, 2]]),
        ([[1], [2, 3]], [None, None], [[1], [2, 3]]),
    ],
)
def test_every_form_of_prompt_is_taken(prompt, texts, tokens):
    requests = completions(prompt=prompt)
    assert [request.prompt for request in requests] == texts
    assert [request.prompt_token_ids for request in requests] == tokens
    assert len({request.request_id for request in requests}) == len(requests)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True, "max_tokens": 0, "stream": True}, "max_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_a_wrong_completion_field_is_named(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        completions(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [USER, {"role": "robot", "content": ""}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_a_wrong_chat_field_is_named(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param
    assert param.partition("[")[0] in refused.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"chat_template": "{{ x }}"},
        {"use_beam_search": True},
    ],
)
def test_documented_things_that_are_not_offered_are_refused_by_name(fields):
    (name,) = fields
    with pytest.raises(UnsupportedValue) as refused:
        chat(**fields)
    assert refused.value.param == name
    assert refused.value.http_status == 400


def test_values_that_ask_for_nothing_are_taken():
    assert chat(tools=[], modalities=["text"], use_beam_search=False) == chat()


def test_functions_are_tools_by_an_older_name():
    function = {"name": "f", "parameters": {"type": "object"}}
    asked = chat(functions=[function], function_call={"name": "f"})
    assert asked.tools == [{"type": "function", "function": function}]
    assert asked.tool_choice == {"type": "function", "function": {"name": "f"}}
    assert chat(functions=[function], function_call="auto").tool_choice == "auto"


def test_tools_and_the_choice_among_them_are_passed_on():
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert (asked.tools, asked.tool_choice) == (tools, "required")
    assert not asked.parallel_tool_calls
    assert asked.separate_tool_calls
    assert asked.separate_reasoning


def test_an_image_part_is_refused_by_its_place():
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(UnsupportedValue) as refused:
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
    assert refused.value.param == "messages[0].content[1].type"


def test_an_assistant_message_may_have_no_content():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [USER, {"role": "assistant", "tool_calls": calls}]
    assert chat(messages=messages).messages == messages


def test_a_missing_field_is_named():
    with pytest.raises(InvalidRequest) as refused:
        decode_json(b'{"messages": [{}]}', ChatCompletionRequest)
    assert refused.value.param == "model"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b'"x"', b"nul"])
def test_a_body_that_is_no_json_object_is_refused(data):
    with pytest.raises(InvalidRequest):
        decode_json(data, ChatCompletionRequest)


def test_the_bytes_of_a_token_are_its_own_also_where_it_is_part_of_a_character() -> None:
    whole = TokenText(token_id=1, token="é", logprob=-1.0)
    part = TokenText(token_id=2, token="\N{REPLACEMENT CHARACTER}", part=b"\xf0\x9f", logprob=-2.0)
    shown = chat_logprobs([msgspec.structs.replace(part, top=(whole, part))], 2)["content"][0]
    assert shown["bytes"] == [0xF0, 0x9F]
    assert [it["bytes"] for it in shown["top_logprobs"]] == [[0xC3, 0xA9], [0xF0, 0x9F]]
