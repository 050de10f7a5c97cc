"""What an operator may set on the HTTP front."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Limits and defaults of the HTTP front. Raises InvalidConfig naming the field.

    `max_body_bytes`: largest request body. `max_prompts`: most prompts in one completions request,
    `max_embedding_inputs` in one of embeddings.
    `request_timeout_s`: limit of a whole generation in seconds, None for none. `body_timeout_s`:
    time for a request's body, 0 for any. `retry_after_s`: the Retry-After of 429 and 503 answers.
    `headers`: sent with every answer. `keep_alive_s`: seconds of silence after which a stream sends
    a comment, 0 for never. `cors_origins`: other origins that browsers may ask from.
    `refuse_unknown_fields`: refuse names in bodies that are not known, instead of ignoring them.
    At most `response_store_items` responses of together `response_store_bytes` are stored, for
    `response_store_ttl_s` seconds; 0 stores none. `paths`: further paths, each with the one that it
    stands for.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_prompts: int = 128
    max_embedding_inputs: int = 2048
    request_timeout_s: float | None = None
    body_timeout_s: float = 60.0
    retry_after_s: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    keep_alive_s: float = 15.0
    cors_origins: tuple[str, ...] = ()
    refuse_unknown_fields: bool = False
    response_store_items: int = 10_000
    response_store_bytes: int = 256 * 1024 * 1024
    response_store_ttl_s: float = 3600.0
    paths: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that no server can run with."""
        for name in ("max_body_bytes", "max_prompts", "retry_after_s"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1", param=name)
        if self.request_timeout_s is not None and self.request_timeout_s <= 0:
            raise InvalidConfig("request_timeout_s must be positive", param="request_timeout_s")
        for path in self.paths:
            if not path.startswith("/"):
                raise InvalidConfig(f"paths: {path!r} does not begin with /", param="paths")
        for name, value in self.headers.items():
            if not name.isascii() or not value.isascii() or "\n" in value or "\r" in value:
                raise InvalidConfig(f"headers: {name!r} is not a plain header", param="headers")
