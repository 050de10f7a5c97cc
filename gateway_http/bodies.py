"""A request's JSON body as the struct that its endpoint takes."""

from array import array
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from gateway_http.config import GatewayConfig
from gateway_http.intake import read_json_body
from gateway_http.openai import decode_json
from gateway_http.token_lists import take_ids
from runtime.errors import InvalidRequest
from runtime.turns import in_turns, own_turn
from wire.items import is_long, take_items

_Json = TypeVar("_Json", bound=msgspec.Struct)
_Parsed = TypeVar("_Parsed")
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def read_body(
    request: Request, config: GatewayConfig, kind: type[_Json], *long_fields: str
) -> _Json:
    """Read, parse and check it. Raises what read_json_body and decode_json do.

    Names that the struct does not have are ignored, or refused where the operator wants that.
    `long_fields` may be long: lists of objects or texts, or objects.
    """
    data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
    return await as_struct(data, config, kind, *long_fields)


async def read_with_ids(
    request: Request,
    config: GatewayConfig,
    kind: type[_Json],
    field: str,
    *,
    lists: int = 0,
) -> "tuple[_Json, list[array[int]] | None]":
    """Do the same; what take_ids takes out of its `field` is apart, if it takes something."""
    data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
    data, ids = await take_ids(data, field, lists=lists)
    return await as_struct(data, config, kind, field), ids


async def parse_json(data: bytes, kind: type[_Parsed]) -> _Parsed:
    """Parse and check a body that has been read; a long one in a turn of its own."""
    if not is_long(data):
        return decode_json(data, kind)
    async with own_turn():
        return decode_json(data, kind)


async def as_struct(
    data: bytes, config: GatewayConfig, kind: type[_Json], *long_fields: str
) -> _Json:
    """Do the same with a body that has been read."""
    data, taken = await in_turns(take_items(data, long_fields))
    body = await parse_json(data, kind)
    if config.refuse_unknown_fields:
        _refuse_unknown(data, kind)
    return msgspec.structs.replace(body, **taken) if taken else body


def _refuse_unknown(data: bytes, kind: Any) -> None:
    known = set(kind.__struct_encode_fields__)
    for name in _keys(data):
        if name not in known:
            raise InvalidRequest(f"{name}: unknown field", param=name)
