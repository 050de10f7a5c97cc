"""The `messages` tensor: a conversation as JSON, its messages alone or in an object with more."""

from typing import Annotated, Any

import msgspec

from runtime.errors import InvalidRequest
from runtime.turns import Steps
from wire.generate import GenerateRequest
from wire.items import is_long, take_items
from wire.nesting import nesting_steps
from wire.sampling_inputs import TEXT, decode_json, tensor_value
from wire.tensors import Tensor
from wire.type_errors import type_error

_MESSAGES = "messages"


class _Chat(msgspec.Struct, forbid_unknown_fields=True):
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = {}


_LONG_FIELDS = (_MESSAGES, "tools", "chat_template_kwargs")


def read_chat(tensor: Tensor) -> Steps[dict[str, Any]]:
    """Return the fields of a GenerateRequest that a conversation has.

    Raises InvalidRequest naming the field.
    """
    if tensor.datatype == "BYTES" and any(map(is_long, tensor.values.flat)):
        yield
    text = tensor_value(tensor, TEXT).encode()
    if text.lstrip().startswith(b"["):
        text = b'{"messages":%b}' % text
    text, taken = yield from take_items(text, _LONG_FIELDS)
    try:
        chat = msgspec.convert(decode_json(_MESSAGES, text), _Chat)
    except msgspec.ValidationError as error:
        wrong = type_error(str(error))
        raise InvalidRequest(f"{_MESSAGES}: {wrong.message}", param=_MESSAGES) from None
    fields = {name: getattr(chat, name) for name in _Chat.__struct_fields__} | taken
    for name, field in fields.items():
        yield from nesting_steps(field, name)
    return fields


def chat_json(request: GenerateRequest) -> bytes:
    """Write what read_chat reads."""
    return msgspec.json.encode({name: getattr(request, name) for name in _Chat.__struct_fields__})
