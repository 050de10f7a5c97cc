"""Log lines carry the same facts as text and as JSON."""

import json
import logging

import pytest

from runtime.logs import JsonFormatter, TextFormatter, child_line, configure_logging


def record(message: str = "done in %s s", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.INFO, __file__, 1, message, args or (3,), None)
    made.__dict__.update(extra)
    return made


def test_text_lines_end_with_the_known_fields():
    line = TextFormatter().format(record(request_id="r1", worker="w", other="no"))
    assert line.endswith("INFO    server.x: done in 3 s request_id=r1 worker=w")


def test_json_lines_are_one_object_each():
    entry = json.loads(JsonFormatter().format(record("two\nlines %s", 1, model="m")))
    assert entry["message"] == "two\nlines 1"
    assert entry["model"] == "m"
    assert entry["level"] == "info"
    assert entry["time"].endswith("Z")
    assert "request_id" not in entry


def test_json_lines_carry_the_trace():
    try:
        raise ValueError("inner")
    except ValueError as error:
        failed = record()
        failed.exc_info = (ValueError, error, error.__traceback__)
    entry = json.loads(JsonFormatter().format(failed))
    assert "ValueError: inner" in entry["trace"]


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.captureWarnings(False)
    for package in ("cli", "gateway_http", "server", "worker", "router", "wire", "runtime"):
        logging.getLogger(package).setLevel(logging.NOTSET)


def test_the_level_holds_for_our_packages_only(restored_logging, capsys):
    configure_logging(level="debug", log_format="json")
    logging.getLogger("server.x").debug("ours")
    logging.getLogger("watchfiles").info("theirs")
    assert json.loads(capsys.readouterr().err)["message"] == "ours"


@pytest.mark.parametrize("line", ["plain text", "[1, 2]", '{"half'])
def test_a_childs_line_that_is_no_log_entry_becomes_one(line):
    assert child_line("w", line, "text") == f"[w] {line}"
    entry = json.loads(child_line("w", line, "json"))
    assert entry["message"] == line
    assert entry["process"] == "w"
    assert entry["time"].endswith("Z")


def test_a_childs_log_entry_keeps_its_fields_and_gets_its_name():
    line = '{"time":"t","level":"warning","message":"m","model":"x"}'
    entry = json.loads(child_line("w", line, "json"))
    assert entry == json.loads(line) | {"process": "w"}
