"""JSON that nests without end: refused before anything recurses over it."""

import pytest

from gateway_http.chat import chat_request
from gateway_http.openai import checked_body, decode_json
from gateway_http.origin import Origin
from gateway_http.schema import ChatCompletionRequest
from runtime.errors import InvalidRequest
from runtime.turns import at_once
from wire.generate import GenerateRequest
from wire.nesting import MAX_NESTING

MESSAGE = '{"role": "user", "content": "Hi"}'
# What of a body reaches code that recurses; "VALUE" is what nests.
PLACES = {
    "messages": '"messages": [{"role": "user", "content": "Hi", "extra": VALUE}]',
    "chat_template_kwargs": '"chat_template_kwargs": {"a": VALUE}',
    "structured_outputs": '"structured_outputs": {"json": {"a": VALUE}}',
    "response_format": (
        '"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": VALUE}}}'
    ),
}


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def decoded(place: str, value: str) -> GenerateRequest:
    fields = {"messages": f'"messages": [{MESSAGE}]'}
    fields[place] = PLACES.get(place, f'"{place}": VALUE')
    body = "{" + ", ".join(['"model": "m"', *fields.values()]) + "}"
    parsed = decode_json(body.replace("VALUE", value).encode(), ChatCompletionRequest)
    origin = Origin(request_id="x", endpoint="/v1/test")
    return at_once(chat_request(checked_body(parsed), origin))


@pytest.mark.parametrize("nested", [lists, objects])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_passed_on_may_nest_so_deep_and_no_deeper(place: str, nested) -> None:
    assert decoded(place, nested(MAX_NESTING // 2)).model == "m"
    with pytest.raises(InvalidRequest) as caught:
        decoded(place, nested(MAX_NESTING + 1))
    assert caught.value.param


@pytest.mark.parametrize("nested", [lists, objects])
@pytest.mark.parametrize("place", [*PLACES, "user", "metadata", "tools", "logit_bias"])
def test_any_depth_in_any_field_is_one_clear_error(place: str, nested) -> None:
    with pytest.raises(InvalidRequest):
        decoded(place, nested(100_000))
