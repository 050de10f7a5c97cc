"""The gRPC server's options: each flag reaches C-core, and what excludes another is refused."""

import pytest

from cli.frontend import FrontendConfig
from runtime.config import parse_config
from runtime.errors import InvalidConfig


def args_of(*flags: str) -> dict[str, int]:
    config, _ = parse_config(FrontendConfig, flags, prog="x", description="x")
    return dict(config.grpc_options(max_message_bytes=-1).channel_args())


@pytest.mark.parametrize(
    ("flag", "value", "argument", "wanted"),
    [
        ("--grpc-max-concurrent-streams", "7", "grpc.max_concurrent_streams", 7),
        ("--grpc-max-metadata-bytes", "2048", "grpc.max_metadata_size", 2048),
        ("--grpc-max-metadata-bytes", "2048", "grpc.absolute_max_metadata_size", 2048),
        ("--grpc-max-connection-age-s", "1.5", "grpc.max_connection_age_ms", 1500),
        ("--grpc-max-connection-age-grace-s", "2", "grpc.max_connection_age_grace_ms", 2000),
        ("--grpc-keepalive-time-s", "5", "grpc.keepalive_time_ms", 5000),
        ("--grpc-keepalive-timeout-s", "3", "grpc.keepalive_timeout_ms", 3000),
        ("--grpc-keepalive-timeout-s", "3", "grpc.http2.ping_timeout_ms", 3000),
        ("--grpc-infer-response-compression-level", "high", "grpc.default_compression_level", 3),
    ],
)
def test_a_flag_reaches_the_server(flag: str, value: str, argument: str, wanted: int) -> None:
    assert args_of(flag, value)[argument] == wanted
    assert args_of().get(argument) != wanted


def test_what_is_off_is_left_to_the_library() -> None:
    found = args_of("--grpc-keepalive-time-s", "0")
    for argument in (
        "grpc.max_concurrent_streams",
        "grpc.max_connection_age_ms",
        "grpc.max_connection_age_grace_ms",
        "grpc.keepalive_time_ms",
        "grpc.default_compression_level",
    ):
        assert argument not in found


def test_shared_memory_needs_a_single_process() -> None:
    with pytest.raises(InvalidConfig, match="--processes"):
        FrontendConfig(shared_memory=True, processes=2)
    assert FrontendConfig(shared_memory=True).front_door()["shared_memory"] is True
