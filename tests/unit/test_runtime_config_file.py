"""What may stand in the YAML file of a configuration, and how it is told what may not."""

import pytest

from runtime.config_file import ConfigFile
from runtime.errors import InvalidConfig

KEYS = ("host", "grpc-port", "aliases")


@pytest.fixture
def read(tmp_path):
    def parse(content: str | bytes):
        path = tmp_path / "x.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ConfigFile(KEYS).parse(path)

    return parse


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("\ufeffhost: a", {"host": "a"}),
        ("host: a\ngrpc-port: 8001\n", {"host": "a", "grpc-port": "8001"}),
        ("grpc_port: 1", {"grpc_port": "1"}),
        ("{host: a, aliases: [b, c]}", {"host": "a", "aliases": ["b", "c"]}),
        ("aliases:\n- b\n- c\n", {"aliases": ["b", "c"]}),
        ("host: null\ngrpc-port: ~\naliases:\n", {}),
        ("host: 'null'", {"host": "null"}),
    ],
)
def test_keys_hold_one_value_or_a_list(read, text, values):
    assert read(text) == values


@pytest.mark.parametrize("written", ["1.10", "on", "10:30", "2026-01-02", "0x10", "1_000", "~/a"])
def test_values_stay_as_they_are_written(read, written):
    assert read(f"host: {written}\naliases: [{written}]") == {
        "host": written,
        "aliases": [written],
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("host: [", "x.yaml, line 1: this is not YAML: while parsing a flow"),
        ("host: b: c", "line 1: this is not YAML: mapping values are not allowed here"),
        ("\thost: a", "line 1: this is not YAML"),
        ("host: *there", "line 1: this is not YAML: found undefined alias"),
        ("host: a\n---\nhost: b", "expected a single document"),
        ("host: '\x01'", "x.yaml is not YAML"),
        ("[" * 5000, "x.yaml is not YAML"),
        (b"host: \xff", "x.yaml is not UTF-8 text"),
        ("- host", "line 1: keys and values expected"),
        ("host", "line 1: keys and values expected"),
        ("? [host]\n: a", "line 1: a key must be a word"),
        ("aliases: [a]\nhost: {a: 1}", "line 2: key 'host' holds keys of its own"),
        ("aliases: [a, [b]]", "key 'aliases' must be a plain list"),
        ("aliases: [a, null]", "key 'aliases' must be a plain list"),
        ("host: a\n\nhost: b", "line 3: key 'host' is already in line 1"),
        ("{host: a, host: b}", "line 1: key 'host' is already in line 1"),
        ("grpc-port: 1\ngrpc_port: 1", "line 2: key 'grpc_port' is already in line 1"),
        ("grcp-port: 1", "unknown key 'grcp-port' in"),
        ("grcp-port: 1", "x.yaml; did you mean 'grpc-port'?"),
        ("config: other.yaml", "unknown key 'config' in"),
        ("print-config: true", "unknown key 'print-config' in"),
        ("--host: a", "unknown key '--host' in"),
    ],
)
def test_anything_else_is_described_in_one_line(read, content, problem):
    with pytest.raises(InvalidConfig) as caught:
        read(content)
    assert problem in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path / "nowhere", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidConfig) as caught:
            ConfigFile(KEYS).parse(path)
        assert f"{path}: {reason}" in caught.value.message
