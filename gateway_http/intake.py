"""Reading a request's body: content type and size first, then the bytes."""

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from runtime.errors import Cancelled, RequestTooLarge


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises RequestTooLarge, or HTTPException 415 for another content type.

    Raises Cancelled when the client goes away meanwhile.
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
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise Cancelled("the client went away") from None
    return bytes(body)


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {max_bytes} bytes")
