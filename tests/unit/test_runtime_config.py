"""Flags, environment variables and a YAML file become one frozen configuration."""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.config import (
    argument,
    as_flags,
    child_environment,
    like,
    option,
    parse_config,
    secret_variables,
    unknown_variables,
)
from runtime.config_option import HOST_PORT
from runtime.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    models: tuple[str, ...] = argument(metavar="MODEL", help="what to serve")
    grpc_port: int = option(8001, help="gRPC port", group="Listening", least=0, most=65535)
    speed: float = option(1.0, help="how fast", unit="m/s", above=0)
    host: str = option("127.0.0.1", help="address", group="Listening")
    target: str | None = option(None, help="server", form=HOST_PORT)
    log_format: str = option("text", help="format", choices=("text", "json"))
    ready_file: Path | None = option(None, help="file")
    no_http: bool = option(False, help="no HTTP")
    probing: bool = option(True, help="whether to probe")
    aliases: tuple[str, ...] = option((), help="more names, 100%")
    secret_code: int = option(0, help="", hidden=True)
    password: str | None = option(None, help="who knows", secret=True)
    pin: int = option(1234, help="four digits", secret=True, secret_flag=True, least=0)

    def __post_init__(self) -> None:
        if self.host == self.log_format:
            raise InvalidConfig("is no format", param="host")


def parse(*argv: str, **environment: str):
    return parse_config(
        Settings,
        ["m", *argv],
        prog="x",
        description="d",
        examples=("x m",),
        rest_for="vLLM",
        environment=environment,
    )


def error(*argv: str, **environment: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse(*argv, **environment)
    return caught.value.message


def shown(capsys, *argv: str, **environment: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*argv, **environment)
    assert caught.value.code == 0
    out: str = capsys.readouterr().out
    return out


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
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


@pytest.mark.parametrize("text", ["models: [a, b]", "models:\n- a\n- b\n"])
def test_an_argument_can_come_from_a_variable_or_a_key(file, text):
    def models(*argv: str, **environment: str) -> tuple[str, ...]:
        config, _ = parse_config(Settings, argv, prog="x", description="d", environment=environment)
        return config.models

    assert models("--config", file(text)) == ("a", "b")
    assert models("--config", file(text), PENSTOCK_MODELS="c") == ("c",)
    assert models("d", "--config", file(text), PENSTOCK_MODELS="c") == ("d",)


def test_what_stands_behind_two_dashes_is_handed_over_untouched():
    config, rest = parse("n", "--grpc-port=5", "--", "--max-model-len", "4096", "--", "--x")
    assert config.models == ("m", "n")
    assert rest == ["--max-model-len", "4096", "--", "--x"]


def test_nothing_stands_behind_two_dashes_of_a_command_that_hands_nothing_on():
    with pytest.raises(InvalidConfig, match="x takes no arguments behind --"):
        parse_config(Settings, ["m", "--", "--y"], prog="x", description="d", environment={})


def test_a_path_may_begin_at_the_users_home(file, monkeypatch):
    monkeypatch.setenv("HOME", "/a/home")
    assert parse("--config", file("ready-file: ~/r"))[0].ready_file == Path("/a/home/r")


# --------------------------------------------------------------------------------------- switches
@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "True", "YES"])
def test_a_switch_is_on_by_many_words(file, word):
    assert parse(PENSTOCK_NO_HTTP=word)[0].no_http
    assert parse("--config", file(f"no-http: {word}\nprobing: {word}"))[0].no_http


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", "NO"])
def test_a_switch_is_off_by_as_many(file, word):
    assert not parse(PENSTOCK_PROBING=word)[0].probing
    config, _ = parse("--config", file(f"no-http: {word}\nprobing: {word}"))
    assert (config.no_http, config.probing) == (False, False)


def test_a_flag_switches_off_what_is_on_by_default_or_by_a_variable(file):
    assert parse("--no-probing")[0].probing is False
    assert parse("--probing", PENSTOCK_PROBING="no")[0].probing is True
    path = file("no-http: true\nprobing: false")
    assert parse("--config", path, PENSTOCK_NO_HTTP="0", PENSTOCK_PROBING="1")[0] == Settings(
        models=("m",)
    )


# ----------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("x", "must be an integer from 0 to 65535, not 'x'"),
        ("-1", "must be an integer from 0 to 65535, not '-1'"),
        ("65536", "must be an integer from 0 to 65535, not '65536'"),
        ("1.5", "must be an integer from 0 to 65535, not '1.5'"),
    ],
)
def test_an_error_names_flag_variable_and_key_the_range_and_the_value(file, given, problem):
    name = "--grpc-port / PENSTOCK_GRPC_PORT: "
    assert error(f"--grpc-port={given}") == name + problem
    assert (
        error(PENSTOCK_GRPC_PORT=given)
        == f"{name}{problem} (environment variable PENSTOCK_GRPC_PORT)"
    )
    path = file(f"grpc_port: '{given}'")
    assert error("--config", path) == f"{name}{problem} (key 'grpc_port' in {path})"


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--speed=0"], "--speed / PENSTOCK_SPEED: must be a number above 0, not '0'"),
        (["--speed=inf"], "must be a number above 0, not 'inf'"),
        (["--speed=nan"], "must be a number above 0, not 'nan'"),
        (["--log-format=xml"], "must be one of text, json, not 'xml'"),
        (["--log-format"], "--log-format / PENSTOCK_LOG_FORMAT: needs a value"),
        (["--no-http=yes"], "--no-http / PENSTOCK_NO_HTTP: takes no value"),
        (["--host="], "must be a non-empty text, not ''"),
        (["--host", " "], "must be a non-empty text, not ' '"),
        (["--host", "a\0"], "must be a non-empty text"),
        (["--host", "\udcff"], "must be a non-empty text"),
        (["--ready-file="], "must be a non-empty path, not ''"),
        (["--aliases=a", "--aliases="], "--aliases / PENSTOCK_ALIASES: must be"),
        (["--config="], "--config / PENSTOCK_CONFIG: must be"),
        (["--host=text"], "--host / PENSTOCK_HOST: is no format"),
        (["--grpc-prt=1"], "unknown flag --grpc-prt; did you mean --grpc-port?"),
        (["--grpc_port=1"], "unknown flag --grpc_port; did you mean --grpc-port?"),
        (["--grpc", "1"], "unknown flag --grpc"),
        (["--wholly-different"], "unknown flag --wholly-different (what is meant for vLLM stands"),
        (["--print-config=1"], "--print-config: ignored explicit argument"),
        (["--speed=1", "n"], "unexpected argument 'n'; several MODEL stand side by side"),
        ([""], "MODEL / PENSTOCK_MODELS: must be a non-empty text"),
    ],
)
def test_a_wrong_command_line_is_described_in_one_line(argv, problem):
    said = error(*argv)
    assert problem in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"PENSTOCK_NO_HTTP": "perhaps"}, "must be true or false, not 'perhaps' (env"),
        ({"PENSTOCK_NO_HTTP": ""}, "must be true or false, not '' (environment variable"),
        ({"PENSTOCK_HOST": ""}, "must be a non-empty text, not '' (environment variable"),
        ({"PENSTOCK_CONFIG": ""}, "--config / PENSTOCK_CONFIG: must be a non-empty"),
        ({"PENSTOCK_ALIASES": "[a, ]"}, "PENSTOCK_ALIASES: must be a non-empty text"),
        ({"PENSTOCK_HOST": "text"}, "is no format (environment variable PENSTOCK_HOST)"),
    ],
)
def test_a_wrong_variable_is_described_in_one_line(environment, problem):
    assert problem in error(**environment)


@pytest.mark.parametrize("target", ["localhost:1", "10.0.0.1:8001", "[::1]:8001", "a.b-c:65535"])
def test_a_target_is_a_host_and_a_port(target):
    assert parse(f"--target={target}")[0].target == target


@pytest.mark.parametrize("target", ["localhost", ":8001", "http://a:1", "a:b", "::1:8001", "a b:1"])
def test_anything_else_is_no_target(target):
    assert f"must be HOST:PORT, not {target!r}" in error(f"--target={target}")


def test_a_missing_argument_is_named_with_its_variable():
    with pytest.raises(InvalidConfig, match="MODEL / PENSTOCK_MODELS: missing"):
        parse_config(Settings, [], prog="x", description="d", environment={})


def test_variables_that_kubernetes_sets_for_its_services_are_not_taken_for_ours():
    links = {
        "PENSTOCK_GRPC_PORT": "tcp://10.0.0.1:8001",
        "PENSTOCK_GRPC_PORT_8001_TCP": "tcp://10.0.0.1:8001",
        "PENSTOCK_GRPC_PORT_8001_TCP_ADDR": "10.0.0.1",
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT_GRPC": "8001",
    }
    assert parse(**links)[0] == Settings(models=("m",))
    assert unknown_variables([Settings], environment=links) == []


def test_a_variable_that_nothing_knows_is_named_with_the_nearest_one():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Other:
        engine: str = option("vllm", help="")

    environment = {
        "PENSTOCK_GRCP_PORT": "1",
        "PENSTOCK_ENGINE": "sim",
        "PENSTOCK_HOST": "a",
        "PENSTOCK_CONFIG": "c",
        "PENSTOCK_BUILD": "cpu",
        "OTHERS": "x",
    }
    assert unknown_variables(
        [Settings, Other], others=["PENSTOCK_BUILD"], environment=environment
    ) == [
        "environment variable PENSTOCK_GRCP_PORT is unknown and has no effect; "
        "did you mean PENSTOCK_GRPC_PORT?"
    ]


# ---------------------------------------------------------------------------------------- showing
def test_print_config_shows_values_and_their_sources(capsys, file):
    path = file("speed: 2\nno_http: false")
    out = shown(
        capsys, "--print-config", "--config", path, "--host=h", "--log-format=text",
        PENSTOCK_GRPC_PORT="7",
    )  # fmt: skip
    assert out.splitlines() == [
        "models: [m]  # argument",
        f"speed: 2.0  # key 'speed' in {path}",
        "target: null  # default",
        "log-format: text  # --log-format",
        "ready-file: null  # default",
        f"no-http: false  # key 'no_http' in {path}",
        "probing: true  # default",
        "aliases: []  # default",
        "password: null  # default",
        "# pin: '***'  # default",
        "grpc-port: 7  # environment variable PENSTOCK_GRPC_PORT",
        "host: h  # --host",
    ]


def test_what_is_shown_is_a_file_for_the_same_configuration(capsys, file):
    argv = ["--host=a b", "--aliases=true", "--aliases=1.10", "--no-probing", "--speed=1e-7"]
    out = shown(capsys, *argv, "--ready-file=/r: #f", "--secret-code=7", "--print-config")
    config, _ = parse_config(
        Settings, ["--config", file(out)], prog="x", description="d", environment={}
    )
    assert config == parse(*argv, "--ready-file=/r: #f", "--secret-code=7")[0]


@settings(max_examples=30, deadline=None)
@example(text="a\xa0")
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
def test_any_text_survives_being_shown_and_read_back(text, tmp_path_factory):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class One:
        name: str = option("", help="")
        names: tuple[str, ...] = option((), help="")

    path = tmp_path_factory.mktemp("shown") / "x.yaml"
    argv = [f"--name={text}", f"--names={text}", f"--names={text}"]
    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit):
        parse_config(One, [*argv, "--print-config"], prog="x", description="d", environment={})
    path.write_text(out.getvalue(), encoding="utf-8")
    config, _ = parse_config(One, [f"--config={path}"], prog="x", description="d", environment={})
    assert config == One(name=text, names=(text, text))


def test_a_secret_is_shown_nowhere(capsys, file):
    for argv, environment in (
        (["--pin=777"], {}),
        ([], {"PENSTOCK_PASSWORD": "777"}),
        (["--config", file("password: 777")], {}),
    ):
        out = shown(capsys, "--print-config", *argv, **environment)
        assert "***" in out
        assert "777" not in out
        assert "777" not in repr(parse(*argv, **environment)[0])
    assert "777" not in error("--pin=x777")
    assert "777" not in error("--pim=777")
    assert "777" not in error("--config", file("pasword: 777"))
    assert "777" not in error("--config", file("password: [777"))


def test_a_secret_is_for_the_command_line_only_where_that_is_said(capsys):
    assert parse("--pin=7")[0].pin == 7
    assert error("--password=7").startswith("PENSTOCK_PASSWORD: a secret is not for the command")
    assert error("--password", "7").startswith("PENSTOCK_PASSWORD: a secret is not for the command")
    text = shown(capsys, "--help")
    assert "--pin" in text
    assert "--password" not in text


def test_a_child_gets_secrets_by_its_environment_and_not_by_its_command_line():
    config, _ = parse(PENSTOCK_PASSWORD="hunter2")
    assert as_flags(config, ["password", "pin", "host"]) == ["--host=127.0.0.1"]
    assert secret_variables(config) == {
        "PENSTOCK_PASSWORD": "hunter2",
        "PENSTOCK_PIN": "1234",
    }
    assert secret_variables(config, without=["pin"]) == {"PENSTOCK_PASSWORD": "hunter2"}


def test_a_child_has_this_environment_without_the_file_and_what_is_not_for_it(monkeypatch):
    for name in ("PENSTOCK_CONFIG", "PENSTOCK_PIN", "PENSTOCK_HOST"):
        monkeypatch.setenv(name, "1")
    names = {n for n in child_environment(without=["pin"]) if n.startswith("PENSTOCK_")}
    assert names >= {"PENSTOCK_HOST"}
    assert not names & {"PENSTOCK_CONFIG", "PENSTOCK_PIN"}


def test_help_shows_sections_defaults_units_ranges_variables_and_examples(capsys):
    lines = shown(capsys, "--help").splitlines()
    assert lines[0] == "usage: x MODEL [MODEL ...] [options] [-- vLLM arguments]"
    assert "Listening:" in lines
    assert lines[-2:] == ["examples:", "  x m"]
    text = " ".join(" ".join(lines).split())
    assert "how fast (default 1 m/s; above 0) [PENSTOCK_SPEED]" in text
    assert "gRPC port (default 8001; from 0 to 65535) [PENSTOCK_GRPC_PORT]" in text
    assert "--log-format {text,json}" in text
    assert "--probing, --no-probing whether to probe (default true)" in text
    assert "what to serve [PENSTOCK_MODELS]" in text
    assert "secret-code" not in text


def test_flags_of_a_child_process_parse_back_to_the_same_values():
    config, _ = parse("--no-http", "--no-probing", "--aliases=-a", "--speed=3", "--ready-file", "f")
    names = ["grpc_port", "speed", "host", "ready_file", "no_http", "probing", "aliases"]
    assert parse(*as_flags(config, names))[0] == config
    # Whatever the child's environment says.
    assert parse(*as_flags(config, names), PENSTOCK_PROBING="1")[0] == config


def test_a_field_like_another_takes_its_range():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Other:
        grpc_port: int = like(Settings, "grpc_port")

    with pytest.raises(InvalidConfig, match="from 0 to 65535"):
        parse_config(Other, ["--grpc-port=-1"], prog="x", description="d", environment={})
