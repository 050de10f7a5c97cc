"""The gRPC server on the command line; the names are Triton's where it has the option."""

from dataclasses import dataclass
from typing import Any

from runtime.config import option
from runtime.grpc_options import COMPRESSION_LEVELS, GrpcOptions
from runtime.options import DAY_S


@dataclass(frozen=True, kw_only=True)
class GrpcServerOptions:
    """Limits of the server's connections. Without slots, to stand beside other bases."""

    grpc_max_concurrent_streams: int = option(
        0, help="most rpcs at a time on one connection; further ones wait at the client; 0 is no "
        "limit", group="Limits", least=0, most=2**31 - 1,
    )  # fmt: skip
    grpc_max_metadata_bytes: int = option(
        16 * 1024, help="largest metadata of an rpc", group="Limits", unit="bytes", least=1024,
        most=2**24,
    )  # fmt: skip
    grpc_max_connection_age_s: float = option(
        0.0, help="age at which a connection is told to go elsewhere (GOAWAY), give or take a "
        "tenth; 0 is never", group="Limits", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    grpc_max_connection_age_grace_s: float = option(
        0.0, help="time for what runs on such a connection; 0 is no limit", group="Limits",
        unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    grpc_keepalive_time_s: float = option(
        60.0, help="silence after which a client is asked whether it is there; 0 is never",
        group="Limits", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    grpc_keepalive_timeout_s: float = option(
        20.0, help="time for its answer, or its connection is closed", group="Limits", unit="s",
        above=0, most=DAY_S,
    )  # fmt: skip
    grpc_infer_response_compression_level: str = option(
        "none", help="how much answers are compressed, for clients that take it", group="Listening",
        choices=COMPRESSION_LEVELS,
    )  # fmt: skip

    def grpc_options(self, **others: Any) -> GrpcOptions:
        """The server's options; `others` are those that have their own place."""
        return GrpcOptions(
            max_concurrent_streams=self.grpc_max_concurrent_streams,
            max_metadata_bytes=self.grpc_max_metadata_bytes,
            max_connection_age_s=self.grpc_max_connection_age_s,
            max_connection_age_grace_s=self.grpc_max_connection_age_grace_s,
            keepalive_time_s=self.grpc_keepalive_time_s,
            keepalive_timeout_s=self.grpc_keepalive_timeout_s,
            compression=self.grpc_infer_response_compression_level,
            **others,
        )
