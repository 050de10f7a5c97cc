"""What holds for the options of every command, and the page that is written from them."""

import re
import shlex
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest
import yaml

from cli import main
from cli.config_classes import CONFIG_CLASSES, SETUP_VARIABLES
from cli.config_reference import reference
from runtime.config_option import ENV_PREFIX, Group, Option, options_of

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(CONFIG_CLASSES)
LEAST_ARGUMENTS = {"serve": ["m"], "worker": ["m"], "gateway": ["--target=a:1"]}


def options(command: str) -> list[Option]:
    return options_of(resolve_name(CONFIG_CLASSES[command]))


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main.main(args))
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    return out


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have variables for a server of his own."""
    for command in COMMANDS:
        for option in options(command):
            monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.delenv(f"{ENV_PREFIX}CONFIG", raising=False)


def test_every_command_has_its_configuration_listed(capsys):
    overview = printed(capsys, "--help")
    commands = re.findall(r"^  ([a-z]+) ", overview, flags=re.MULTILINE)
    assert sorted(commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_a_range_and_every_option_a_section(command):
    lacking = [
        option.flag
        for option in options(command)
        if not option.positional
        and (option.group is None or (option.kind in (int, float) and not option.range))
    ]
    assert lacking == [], "state least=, above= or most=, and group="


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_allowed(command):
    for option in options(command):
        values = option.default if option.many else (option.default,)
        if not option.positional and option.kind is not bool:
            assert [option.read(str(v)) for v in values if v is not None] == [
                v for v in values if v is not None
            ]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_shows_is_a_file_for_it(command, capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(printed(capsys, command, *LEAST_ARGUMENTS.get(command, []), "--print-config"))
    assert list(yaml.safe_load(file.read_text())) == [
        option.key for option in options(command) if not option.hidden
    ]
    again = printed(capsys, command, "--config", str(file), "--print-config")
    assert yaml.safe_load(again) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_sections_in_one_order_and_examples_that_are_right(command, capsys):
    lines = printed(capsys, command, "--help").splitlines()
    titles = [line[:-1] for line in lines if re.fullmatch(r"[A-Z][A-Za-z ]+:", line)]
    assert titles == [group for group in get_args(Group) if group in titles]
    examples = lines[lines.index("examples:") + 1 :]
    assert examples
    for example in examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("penstock", command)
        if "--config" not in arguments:
            printed(capsys, name, "--print-config", *arguments)


def test_the_page_about_the_configuration_is_what_the_code_says():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run `make docs` and commit docs/configuration.md"


def test_the_page_has_a_row_for_each_option_that_is_not_hidden():
    rows = re.findall(r"^\| [^*].*? \| `(PENSTOCK_\w+)`", reference(), flags=re.MULTILINE)
    named = [
        option.variable
        for command in CONFIG_CLASSES
        for option in options(command)
        if not option.hidden
    ]
    assert rows == named


def test_the_variables_of_the_set_up_are_those_it_reads():
    text = (ROOT / "bootstrap.py").read_text(encoding="utf-8")
    assert set(re.findall(rf"\"({ENV_PREFIX}\w+)\"", text)) == set(SETUP_VARIABLES)


def test_a_mistyped_command_is_told_the_nearest_one(capsys):
    assert main.main(["frontent"]) == 2
    assert "did you mean 'frontend'?" in capsys.readouterr().err


def test_a_mistyped_variable_is_a_warning_and_one_of_another_command_is_none(capsys, monkeypatch):
    for name in ("PENSTOCK_GRCP_PORT", "PENSTOCK_PROBE_TIMEOUT_S", "PENSTOCK_BUILD"):
        monkeypatch.setenv(name, "1")
    assert main.main(["frontend", "--no-http", "--no-grpc"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("penstock: warning: environment variable PENSTOCK_GRCP_PORT is")
    assert error.startswith("penstock: error: ")


@pytest.mark.parametrize("ports", [["--grpc-port=9", "--http-port=9"], ["--metrics-port=8001"]])
def test_one_port_for_two_things_is_refused(ports, capsys):
    assert main.main(["frontend", *ports, "--print-config"]) == 2
    assert " already" in capsys.readouterr().err


def test_one_port_on_two_hosts_or_for_what_is_off_is_no_conflict(capsys):
    printed(capsys, "frontend", "--metrics-port=8001", "--metrics-host=::1", "--print-config")
    printed(capsys, "frontend", "--metrics-port=8001", "--no-grpc", "--print-config")
