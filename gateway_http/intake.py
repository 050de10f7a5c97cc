"""Reading a request's body: content type and size first, then the bytes."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from runtime.errors import Cancelled, RequestTimeout, RequestTooLarge


async def read_json_body(request: Request, max_bytes: int, limit_s: float) -> bytes:
    """The body. Raises RequestTooLarge, or HTTPException 415 for another content type.

    Raises Cancelled when the client goes away meanwhile, and RequestTimeout when the body is not
    there after `limit_s` seconds (0: no limit).
    """
    kind = request.headers.get("content-type", "application/json")
    media = kind.partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise HTTPException(415, f"content-type is {media!r}; this endpoint takes application/json")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(limit_s or None):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {limit_s:g} s") from None
    except ClientDisconnect:
        raise Cancelled("the client went away") from None
    return bytes(body)


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {max_bytes} bytes")
