"""Limits and habits of a gRPC server."""

from dataclasses import dataclass

NATIVE, GRPCIO = "native", "grpcio"
"""Transports: ours (transport/), and C-core."""

COMPRESSION_LEVELS = ("none", "low", "medium", "high")
"""Triton's --grpc-infer-response-compression-level; C-core's numbers are the positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcOptions:
    """Limits of a server. Sizes in bytes; -1 is no limit (Triton's own default for messages).

    0 or None is no limit of streams and ages. A connection that is `max_connection_age_s` old
    (C-core strays by a tenth) is told to go elsewhere; what runs on it may end, for at most
    `max_connection_age_grace_s`. A client that answers no ping, sent after `keepalive_time_s` of
    silence, within `keepalive_timeout_s` is gone. `compression` is of answers, with an algorithm
    that the client takes; compressed requests are always taken.
    """

    max_message_bytes: int = -1
    max_metadata_bytes: int = 16 * 1024
    max_concurrent_streams: int | None = None
    max_connection_age_s: float = 0.0
    max_connection_age_grace_s: float = 0.0
    keepalive_time_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    compression: str = "none"
    handshake_timeout_s: float = 10.0
    share_port: bool = False
    transport: str = NATIVE

    def channel_args(self) -> list[tuple[str, int]]:
        """Return the C-core arguments.

        A client's keepalive pings never count as abuse: a request that waits in a queue is a
        silent stream, and by default the server would end it after 30 s of pings.
        """
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            # One limit, not two: between soft and hard limit C-core refuses at random.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            # 120 s by default, and each holds a connection.
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_timeout_s)),
            ("grpc.so_reuseport", int(self.share_port)),
            *self._keepalive(),
            *self._ages(),
            *self._streams(),
        ]

    def _keepalive(self) -> list[tuple[str, int]]:
        if not self.keepalive_time_s:
            return []
        return [
            ("grpc.keepalive_time_ms", _ms(self.keepalive_time_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
            # Without it a ping that goes unanswered is noticed after a minute.
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout_s)),
            ("grpc.http2.max_pings_without_data", 0),
        ]

    def _ages(self) -> list[tuple[str, int]]:
        ages = {
            "grpc.max_connection_age_ms": self.max_connection_age_s,
            "grpc.max_connection_age_grace_ms": self.max_connection_age_grace_s,
        }
        return [(name, _ms(age_s)) for name, age_s in ages.items() if age_s]

    def _streams(self) -> list[tuple[str, int]]:
        args: list[tuple[str, int]] = []
        if self.max_concurrent_streams:
            args += [
                ("grpc.max_concurrent_streams", self.max_concurrent_streams),
                # It counts calls that have ended and are not freed yet, and so refuses rpcs of
                # clients that keep to the limit.
                ("grpc.http.overload_protection", 0),
            ]
        if self.compression != "none":
            level = COMPRESSION_LEVELS.index(self.compression)
            args.append(("grpc.default_compression_level", level))
        return args


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
