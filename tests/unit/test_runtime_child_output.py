"""A child's lines carry its name, and the last one that tells an error is remembered."""

import json

import pytest

from runtime.child_output import ChildOutput


def output(lines: list[str], **settings: str) -> ChildOutput:
    return ChildOutput("w", write=lines.append, **settings)


def test_lines_come_whole_however_the_bytes_arrive():
    lines: list[str] = []
    shown = output(lines)
    for part in (b"o", b"ne\ntw", b"o\n\nthr\xff", b"ee"):
        shown.feed(part)
    shown.end()
    shown.end()
    assert lines == ["[w] one\n", "[w] two\n", "[w] \n", "[w] thr\ufffdee\n"]


def test_a_line_without_end_does_not_grow_without_end():
    lines: list[str] = []
    shown = output(lines)
    for _ in range(5):
        shown.feed(b"x" * 30_000)
    assert len(lines) == 1
    assert len(lines[0]) > 60_000


def test_a_label_stands_for_the_name_in_text_only():
    lines: list[str] = []
    output(lines, label="<w>").feed(b"a\n")
    output(lines, label="<w>", log_format="json").feed(b"b\n")
    assert lines[0] == "<w> a\n"
    assert json.loads(lines[1])["process"] == "w"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", ""),
        ("loading\n\n", "loading"),
        ("loading\npenstock: error: no such thing\nbye", "no such thing"),
        ("2026-01-01 10:00:00.123 ERROR   worker.x: it broke\nbye", "it broke"),
        ("2026-01-01 10:00:00.123 INFO    worker.x: ERROR is a word\nbye", "bye"),
        ("Traceback (most recent call last):\n  x\nValueError: not so\nbye", "ValueError: not so"),
        (
            "torch.OutOfMemoryError: CUDA out of memory\n",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("ValueError: first\npenstock: error: then\n", "then (after ValueError: first)"),
        ("ValueError: first\npenstock: error: broken: first\n", "broken: first"),
    ],
)
def test_the_reason_is_the_last_error_or_else_the_last_line(said, reason):
    shown = output([])
    shown.feed(said.encode())
    shown.end()
    assert shown.reason == reason


def test_the_reason_is_found_in_json_lines_too():
    shown = output([], log_format="json")
    shown.feed(b'{"level":"error","message":"it broke"}\n{"level":"info","message":"bye"}\n')
    assert shown.reason == "it broke"
    shown.feed(b"penstock: error: and so it ends\n")
    assert shown.reason == "and so it ends"


def test_a_very_long_reason_is_cut():
    shown = output([])
    shown.feed(b"E" * 10_000 + b"\n")
    assert len(shown.reason) == 500


def test_a_closed_terminal_does_no_harm():
    def write(_: str) -> None:
        raise OSError(5, "Input/output error")

    shown = ChildOutput("w", write=write)
    shown.feed(b"ValueError: seen all the same\n")
    assert shown.reason == "ValueError: seen all the same"
