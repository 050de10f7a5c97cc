"""Reading a request's body: content type and size first, then the bytes."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from runtime.errors import Cancelled, RequestTimeout, RequestTooLarge


async def read_json_body(
    request: Request, max_bytes: int, limit_s: float, *, binary: bool = False
) -> bytes:
    """The body. Raises RequestTooLarge, or HTTPException 415 for another content type or coding.

    With `binary`, application/octet-stream is welcome too: JSON with something behind it.

    Raises Cancelled when the client goes away meanwhile, and RequestTimeout when the body is not
    there after `limit_s` seconds (0: no limit).
    """
    kind = request.headers.get("content-type", "application/json")
    media = kind.partition(";")[0].strip().lower()
    is_json = media == "application/json" or media.endswith("+json")
    if not is_json and not (binary and media == "application/octet-stream"):
        raise HTTPException(415, f"content-type is {media!r}; this endpoint takes application/json")
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise HTTPException(415, f"content-encoding {coding!r} is not offered; send it plain")
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
