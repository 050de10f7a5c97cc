"""A request's JSON body as the struct that its endpoint takes."""

from array import array
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from gateway_http.config import GatewayConfig
from gateway_http.intake import read_json_body
from gateway_http.openai import decode_json
from gateway_http.token_lists import TokenLists
from runtime.errors import InvalidRequest

_Json = TypeVar("_Json", bound=msgspec.Struct)
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def read_body(request: Request, config: GatewayConfig, kind: type[_Json]) -> _Json:
    """Read, parse and check it. Raises what read_json_body and decode_json do.

    Names that the struct does not have are ignored, or refused where the operator wants that.
    """
    data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
    return as_struct(data, config, kind)


async def read_with_ids(
    request: Request,
    config: GatewayConfig,
    kind: type[_Json],
    token_lists: TokenLists,
    field: str,
    *,
    lists: int = 0,
) -> "tuple[_Json, list[array[int]] | None]":
    """Do the same; what TokenLists takes out of its `field` is apart, if it takes something."""
    data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
    data, ids = await token_lists.take(data, field, lists=lists)
    return as_struct(data, config, kind), ids


def as_struct(data: bytes, config: GatewayConfig, kind: type[_Json]) -> _Json:
    """Parse and check a body that has been read."""
    body = decode_json(data, kind)
    if config.refuse_unknown_fields:
        _refuse_unknown(data, kind)
    return body


def _refuse_unknown(data: bytes, kind: Any) -> None:
    known = set(kind.__struct_encode_fields__)
    for name in _keys(data):
        if name not in known:
            raise InvalidRequest(f"{name}: unknown field", param=name)
