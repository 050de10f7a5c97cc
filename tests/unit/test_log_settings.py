"""Log settings change what is written, and in which form."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import InvalidRequest
from runtime.logs import configure_logging, set_log_level
from server.log_settings import LogSettings, Value, Values
from server.shared_values import SharedValues

LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.captureWarnings(False)
    for package in ("cli", "gateway_http", "server", "worker", "router", "wire", "runtime"):
        logging.getLogger(package).setLevel(logging.NOTSET)


def started(
    *, level: str = "info", log_format: str = "json", shared: SharedValues[Values] | None = None
) -> LogSettings:
    """The settings of a process that was started with these."""
    configure_logging(level=level, log_format=log_format)
    return LogSettings(shared)


def written(capsys: pytest.CaptureFixture[str]) -> str:
    for level in LEVELS:
        getattr(logging.getLogger("server.x"), level)("a line of %s", level)
    return capsys.readouterr().err


def shown_levels(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.findall(r"a line of (\w+)", written(capsys))


def test_at_first_the_settings_are_those_of_the_command_line() -> None:
    assert started().shown() == {
        "log_file": "", "log_info": True, "log_warning": True, "log_error": True,
        "log_verbose_level": 0, "log_format": "default",
    }  # fmt: skip
    assert not started(level="warning").shown()["log_info"]
    assert started(level="debug").shown()["log_verbose_level"] == 1


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, "info warning error"),
        ({"log_verbose_level": 1}, "debug info warning error"),
        ({"log_verbose_level": 3, "log_info": False}, "debug warning error"),
        ({"log_info": False}, "warning error"),
        ({"log_warning": False}, "info error"),
        ({"log_info": False, "log_warning": False}, "error"),
        ({"log_info": False, "log_warning": False, "log_error": False}, ""),
    ],
)
def test_each_switch_holds_for_its_own_lines(
    changes: dict[str, Value], levels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = started()
    settings.update(changes)
    assert " ".join(shown_levels(capsys)) == levels
    assert {name: settings.shown()[name] for name in changes} == changes
    settings.update(dict.fromkeys(changes))
    assert " ".join(shown_levels(capsys)) == "info warning error"


def test_iso8601_is_text_in_utc_and_default_is_what_the_process_began_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = started()
    settings.update({"log_format": "ISO8601"})
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO ", written(capsys))
    settings.update({"log_format": "default"})
    assert written(capsys).startswith('{"time"')


def test_a_level_set_at_the_status_port_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    settings = started()
    set_log_level("error")
    assert not settings.shown()["log_warning"]
    settings.update({"log_info": True})
    assert " ".join(shown_levels(capsys)) == "info error"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_file", "/tmp/x"),
        ("log_format", "xml"),
        ("log_info", 1),
        ("log_verbose_level", True),
        ("log_verbose_level", "1"),
        ("log_everything", True),
        ("log_everything", None),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(name: str, value: Value | None) -> None:
    settings = started()
    before = dict(settings.shown())
    with pytest.raises(InvalidRequest, match=name):
        settings.update({"log_warning": False, name: value})
    assert settings.shown() == before


def test_an_empty_log_file_is_stderr() -> None:
    settings = started()
    settings.update({"log_file": ""})
    assert settings.shown()["log_file"] == ""


def test_a_group_shares_its_settings(tmp_path: Path) -> None:
    one, other = (started(shared=SharedValues(Values, tmp_path / "logs.json")) for _ in range(2))
    one.update({"log_verbose_level": 2, "log_format": "ISO8601"})
    other.look()
    assert other.shown() == one.shown()
