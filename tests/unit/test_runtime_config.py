"""Flags, environment variables and a YAML file become one frozen configuration."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.config import argument, as_flags, option, parse_config
from runtime.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    models: tuple[str, ...] = argument(metavar="MODEL", help="what to serve")
    grpc_port: int = option(8001, help="gRPC port")
    speed: float = option(1.0, help="how fast", unit="m/s")
    host: str = option("127.0.0.1", help="address")
    log_format: str = option("text", help="format", choices=("text", "json"))
    ready_file: Path | None = option(None, help="file")
    no_http: bool = option(False, help="no HTTP")
    aliases: tuple[str, ...] = option((), help="more names, 100%")
    secret: int = option(0, help="", hidden=True)

    def __post_init__(self) -> None:
        if self.grpc_port < 0:
            raise InvalidConfig("must not be negative", param="grpc_port")


def parse(*argv: str, **environment: str):
    return parse_config(Settings, ["m", *argv], prog="x", description="d", environment=environment)


def error(*argv: str, **environment: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse(*argv, **environment)
    return caught.value.message


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_hold_without_any_source():
    assert parse()[0] == Settings(models=("m",))


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(file):
    path = file(
        "grpc-port: 1\nspeed: 2.5\nhost: a\nready-file: r\nno-http: true\naliases: [x, y]\n"
    )
    config, _ = parse(
        "--config", path, "--grpc-port", "3", PENSTOCK_GRPC_PORT="2", PENSTOCK_HOST="b"
    )
    assert config == Settings(
        models=("m",),
        grpc_port=3,
        speed=2.5,
        host="b",
        ready_file=Path("r"),
        no_http=True,
        aliases=("x", "y"),
    )


def test_every_kind_of_field_can_come_from_the_environment(file):
    config, _ = parse(
        PENSTOCK_NO_HTTP="true", PENSTOCK_ALIASES="[a, b]", PENSTOCK_CONFIG=file("speed: 9")
    )
    assert (config.no_http, config.aliases, config.speed) == (True, ("a", "b"), 9.0)


def test_what_stands_behind_two_dashes_is_handed_over_untouched():
    config, rest = parse("n", "--grpc-port=5", "--", "--max-model-len", "4096", "--", "--x")
    assert config.models == ("m", "n")
    assert rest == ["--max-model-len", "4096", "--", "--x"]


@pytest.mark.parametrize(
    ("argv", "environment", "text", "named"),
    [
        (["--grpc-port", "x"], {}, "", "--grpc-port"),
        ([], {"PENSTOCK_GRPC_PORT": "x"}, "", "variable PENSTOCK_GRPC_PORT"),
        ([], {}, "grpc-port: x", "key 'grpc-port' in"),
        (["--grpc-port", "-1"], {}, "", "--grpc-port"),
        ([], {"PENSTOCK_GRPC_PORT": "-1"}, "", "variable PENSTOCK_GRPC_PORT"),
        ([], {}, "log-format: xml", "key 'log-format' in"),
        ([], {}, "grpc-prt: 1", "unknown key 'grpc-prt' in"),
        ([], {"PENSTOCK_NO_HTTP": "perhaps"}, "", "PENSTOCK_NO_HTTP"),
        (["--grpc-prt", "1"], {}, "", "--grpc-prt"),
        (["--grpc", "1"], {}, "", "--grpc"),
        ([], {}, "a: [", "x.yaml"),
    ],
)
def test_errors_name_the_flag_the_variable_or_the_key(file, argv, environment, text, named):
    extra = ["--config", file(text)] if text else []
    assert named in error(*argv, *extra, **environment)


def test_a_missing_file_or_argument_is_named(tmp_path):
    assert "nowhere.yaml" in error("--config", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(InvalidConfig, match="MODEL"):
        parse_config(Settings, [], prog="x", description="d", environment={})


def test_print_config_shows_values_and_their_sources(capsys, file):
    with pytest.raises(SystemExit) as caught:
        parse("--print-config", "--config", file("speed: 2"), "--host=h", PENSTOCK_GRPC_PORT="7")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "grpc-port: 7  # environment variable PENSTOCK_GRPC_PORT" in shown
    assert "speed: 2.0  # key 'speed' in" in shown
    assert "host: h  # --host" in shown
    assert "log-format: text  # default" in shown
    assert "secret" not in shown


def test_help_shows_defaults_units_and_variables(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "how fast (default 1.0 m/s)" in shown
    assert "PENSTOCK_SPEED" in shown
    assert "secret" not in shown


def test_flags_of_a_child_process_parse_back_to_the_same_values():
    config, _ = parse("--no-http", "--aliases=-a", "--speed=3", "--ready-file", "/r f")
    names = ["grpc_port", "speed", "host", "ready_file", "no_http", "aliases"]
    assert parse(*as_flags(config, names))[0] == config
