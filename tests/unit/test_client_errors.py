"""What a person is told of an error, in a sentence."""

import pytest

from cli.client import sentence
from runtime.errors import DeadlineExceeded, Overloaded, ServingError, WorkerLost

NOWHERE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: "
NO_NAME = "errors resolving host:1: [field:hostname lookup error:lookup failed for host:1: "


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            WorkerLost(f"{NOWHERE}Failed to connect to remote host: Connection refused"),
            "cannot connect to host:1: Connection refused",
        ),
        (
            WorkerLost(f"{NOWHERE}Tls handshake failed: SSL_ERROR_SSL: no issuer certificate: OK"),
            "cannot connect to host:1: no issuer certificate",
        ),
        (
            WorkerLost(f"{NO_NAME}Domain name not found]"),
            "cannot connect to host:1: Domain name not found",
        ),
        (WorkerLost("Socket closed"), "the answer of host:1 broke off: Socket closed"),
        (DeadlineExceeded("Deadline Exceeded"), "the time for the answer was over before its end"),
        (Overloaded("try\x1b[2J later"), "try�[2J later"),
    ],
)
def test_an_error_is_told_in_a_sentence(error: ServingError, told: str) -> None:
    assert sentence(error, "host:1") == told
