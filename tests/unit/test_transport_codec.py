"""gRPC's messages and headers: cut anywhere, compressed, and what is wrong with them."""

import gzip
import zlib
from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Code, InternalError, InvalidRequest, RequestTooLarge, Unsupported
from transport.grpc_codec import (
    PLAIN,
    Encoding,
    MessageReader,
    chosen_encoding,
    compress,
    pack_message,
    read_metadata,
    read_timeout,
    response_headers,
    trailers,
    trailers_only,
)
from transport.header_blocks import NO_TABLE

MESSAGES = st.lists(st.binary(max_size=200), max_size=8)


def decoded(block: bytes) -> list[tuple[str, str]]:
    found: Any = hpack.Decoder().decode(NO_TABLE + block)
    return [(str(name), str(value)) for name, value in found]


@given(MESSAGES, st.integers(1, 50))
def test_messages_may_be_cut_anywhere(messages: list[bytes], size: int) -> None:
    sent = b"".join(pack_message(it) for it in messages)
    reader = MessageReader("identity", -1)
    found = [it for at in range(0, len(sent), size) for it in reader.feed(sent[at : at + size])]
    assert found == messages
    assert reader.is_between


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(MESSAGES)
def test_compressed_messages_come_back(encoding: str, messages: list[bytes]) -> None:
    reader = MessageReader(encoding, -1)
    sent = b"".join(
        pack_message(compress(it, Encoding(encoding)), compressed=True) for it in messages
    )
    # Each message says for itself whether it is compressed.
    assert reader.feed(sent + pack_message(b"plain")) == [*messages, b"plain"]


def test_what_others_compress_is_read() -> None:
    assert MessageReader("gzip", -1).feed(pack_message(gzip.compress(b"a"), compressed=True)) == [
        b"a"
    ]
    packed = pack_message(zlib.compress(b"a"), compressed=True)
    assert MessageReader("deflate", -1).feed(packed) == [b"a"]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_limit_is_for_what_is_unpacked(encoding: str) -> None:
    plain, bomb = bytes(1001), bytes(10**7)
    sent = pack_message(plain)
    if encoding == "gzip":
        sent = pack_message(compress(bomb, Encoding("gzip")), compressed=True)[: 10**5]
        assert len(sent) < 20_000
    with pytest.raises(RequestTooLarge):
        MessageReader(encoding, 1000 if encoding == "identity" else 20_000).feed(sent)
    assert MessageReader("identity", 1001).feed(pack_message(plain)) == [plain]


def test_a_size_over_the_limit_is_refused_before_it_has_come() -> None:
    with pytest.raises(RequestTooLarge):
        MessageReader("identity", 10).feed(pack_message(bytes(11))[:5])


@pytest.mark.parametrize(
    ("encoding", "sent", "error"),
    [
        ("identity", b"\2\0\0\0\1a", InvalidRequest),
        ("identity", b"\1\0\0\0\1a", InternalError),
        ("br", b"\1\0\0\0\1a", Unsupported),
        ("gzip", b"\1\0\0\0\1a", InvalidRequest),
        ("gzip", pack_message(gzip.compress(b"abc" * 50)[:-9], compressed=True), InvalidRequest),
    ],
)
def test_bytes_that_are_no_message_are_refused(
    encoding: str, sent: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        MessageReader(encoding, -1).feed(sent)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 0.004), ("5u", 5e-6), ("99999999n", 0.099999999)],
)
def test_timeouts(text: str, seconds: float) -> None:
    assert read_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "S", "1s", "-1S", "123456789S", "1.5S", "1 S"])
def test_what_is_no_timeout_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_timeout(text)
    assert caught.value.param == "grpc-timeout"


def test_metadata_is_what_is_not_the_protocols() -> None:
    headers = [
        (b":path", b"/a/b"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
        (b"grpc-timeout", b"1S"), (b"user-agent", b"x"), (b"a-bin", b"AAE"),
        (b"a-bin", b"AAE=,AAI"),
        (b"b", b"\xe9"),
    ]  # fmt: skip
    assert read_metadata(headers) == [
        ("user-agent", "x"), ("a-bin", b"\0\1"), ("a-bin", b"\0\1"), ("a-bin", b"\0\2"), ("b", "é"),
    ]  # fmt: skip
    with pytest.raises(InvalidRequest, match="a-bin"):
        read_metadata([(b"a-bin", b"!!!!")])


def test_a_status_is_percent_encoded() -> None:
    block = trailers(Code.NOT_FOUND, "no ü, 50 %\n", [("Penstock-Reason", "x")])
    assert decoded(block) == [
        ("grpc-status", "5"),
        ("grpc-message", "no %C3%BC, 50 %25%0A"),
        ("penstock-reason", "x"),
    ]
    assert decoded(trailers(Code.OK, "", ())) == [("grpc-status", "0")]
    assert decoded(trailers_only(Code.INTERNAL, "", ()))[0] == (":status", "200")


def test_answers_say_how_they_are_compressed() -> None:
    assert ("grpc-encoding", "gzip") in decoded(response_headers("gzip", {"a": "b"}))
    assert "grpc-encoding" not in dict(decoded(response_headers("identity", {})))
    assert chosen_encoding("none", "gzip") == PLAIN
    assert chosen_encoding("low", "identity, deflate") == ("deflate", 1)
    assert chosen_encoding("high", "deflate,gzip") == ("gzip", 9)
    assert chosen_encoding("high", "").name == "identity"


def test_a_higher_level_compresses_more() -> None:
    text = " ".join(str(it * it) for it in range(20_000)).encode()
    low, high = (len(compress(text, Encoding("gzip", level))) for level in (1, 9))
    assert low > high
