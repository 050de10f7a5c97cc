"""What the terminal tools are told about the server and the key."""

from pathlib import Path

import pytest

from cli.client_options import ClientOptions
from runtime.config import parse_config
from runtime.errors import InvalidConfig


def test_a_key_becomes_the_metadata_of_a_bearer(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert ClientOptions().metadata() == {}
    assert ClientOptions(api_key="sesame").metadata() == {"authorization": "Bearer sesame"}
    from_file = ClientOptions(api_key_file=file)
    assert from_file.metadata() == {"authorization": "Bearer from-file"}


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nline"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key)
    given = {
        "api_key": ClientOptions(api_key=key),
        "api_key_file": ClientOptions(api_key_file=tmp_path / "key"),
    }
    for field, options in given.items():
        with pytest.raises(InvalidConfig, match=field) as refused:
            options.metadata()
        assert refused.value.param == field
        assert not key or key not in refused.value.message


@pytest.mark.parametrize("target", ["localhost:1", "10.0.0.1:8001", "[::1]:8001", "a.b-c:65535"])
def test_a_target_is_a_host_and_a_port(target: str) -> None:
    assert parsed(f"--target={target}").target == target


@pytest.mark.parametrize("target", ["localhost", ":8001", "http://a:1", "a:b", "::1:8001", "a b:1"])
def test_anything_else_is_refused(target: str) -> None:
    with pytest.raises(InvalidConfig, match="HOST:PORT"):
        parsed(f"--target={target}")


def parsed(*argv: str) -> ClientOptions:
    config, _ = parse_config(ClientOptions, argv, prog="t", description="", environment={})
    return config
