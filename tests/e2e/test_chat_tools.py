"""Tools, structured answers and choices with the real engine and a real client."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc as triton

from tests.e2e.conftest import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NEWS = {"type": "function", "function": {"name": "get_news", "strict": True}}
MESSAGES = [{"role": "user", "content": "How is the weather in Paris for 3 days?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{served.http}/v1", api_key="none", timeout=120, max_retries=0
    ) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 80, **fields}
    )


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_model_that_must_call_calls_with_arguments_of_the_schema(
    client: openai.OpenAI, choice: Any
) -> None:
    tools = [WEATHER, NEWS] if choice == NAMED else [WEATHER]
    answer = ask(client, tools=tools, tool_choice=choice, parallel_tool_calls=False)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.content is None
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather"
    assert arguments.keys() == {"city", "days"}
    assert arguments["city"] in ("Paris", "Rome")
    assert isinstance(arguments["days"], int)


def test_streamed_arguments_add_up_to_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = ask(client, **fields).choices[0].message.tool_calls
    deltas = [
        call
        for chunk in ask(client, stream=True, **fields)
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert deltas[0].function.name == "get_weather"
    assert deltas[0].id
    assert len(deltas) > 5
    assert "".join(it.function.arguments for it in deltas) == whole.function.arguments


def test_a_model_that_may_call_may_answer_in_text(client: openai.OpenAI) -> None:
    answer = ask(client, tools=[WEATHER], max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NEWS], "tool_choice": NAMED}, "tool_choice"),
        (
            {
                "tools": [NEWS],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "structured_outputs",
        ),
    ],
)
def test_tools_that_cannot_be_used_are_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == param


def test_an_answer_follows_a_json_schema_in_each_of_its_choices(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    answer = ask(client, response_format=form, n=3, temperature=1, seed=1)
    assert len(answer.choices) == 3
    for choice in answer.choices:
        assert json.loads(choice.message.content)["n"] in (1, 2)


def test_calls_come_over_kserve_as_an_output_of_their_own(served: Served) -> None:
    text = json.dumps(
        {
            "messages": MESSAGES,
            "tools": [WEATHER],
            "tool_choice": NAMED,
            "parallel_tool_calls": False,
        }
    )
    messages = triton.InferInput("messages", [1], "BYTES")
    messages.set_data_from_numpy(np.array([text.encode()], dtype=object))
    flag = triton.InferInput("return_tool_calls", [1], "BOOL")
    flag.set_data_from_numpy(np.array([True]))
    values = {"max_tokens": 80, "temperature": 0}
    with triton.InferenceServerClient(served.grpc) as client:
        result = client.infer(MODEL, [messages, flag], parameters=values)
        raw = client.infer(MODEL, [messages], parameters=values)
    (call,) = json.loads(result.as_numpy("tool_calls")[0])
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert result.as_numpy("text_output")[0] == b""
    assert b"<tool_call>" in raw.as_numpy("text_output")[0]
