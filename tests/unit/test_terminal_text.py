"""Answers on a terminal: nothing in them is obeyed, and lines break between words."""

import re

import pytest

from cli.terminal_text import printable
from cli.word_wrap import WordWrap

TEXT = (
    "A dam holds the water back, and the penstock leads it to the turbine.\n\n"
    "    indented = code(that, goes, on)\n"
    "Donaudampfschifffahrtsgesellschaft 水力発電所の水圧管路 end"
)


def cells(text: str) -> int:
    return sum(2 if ord(char) > 0x2E80 else 1 for char in text)


def screen(written: str) -> list[str]:
    """The lines that a terminal shows."""
    lines = [""]
    for part in re.findall(r"\x1b\[\d+D\x1b\[K|[^\x1b]", written):
        if part == "\n":
            lines.append("")
        elif part.startswith("\x1b"):
            kept = cells(lines[-1]) - int(part[2:].partition("D")[0])
            while cells(lines[-1]) > kept:
                lines[-1] = lines[-1][:-1]
        else:
            lines[-1] += part
    return lines


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_break_between_words_however_the_text_comes(size: int) -> None:
    wrap = WordWrap(20)
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    assert screen("".join(map(wrap.feed, pieces)))[:9] == [
        "A dam holds the ",
        "water back, and the",
        "penstock leads it ",
        "to the turbine.",
        "",
        "    indented = ",
        "code(that, goes, ",
        "on)",
        "Donaudampfschifffah",
    ]


def test_no_line_is_wider_than_the_terminal_wide_characters_counted() -> None:
    for width in (1, 2, 7, 20, 80):
        shown = screen(WordWrap(width).feed(TEXT))
        assert max(map(cells, shown)) <= max(width, 2)


def test_every_piece_is_shown_at_once() -> None:
    wrap = WordWrap(80)
    assert [wrap.feed(piece) for piece in ("Hel", "lo", " wor", "ld")] == [
        "Hel",
        "lo",
        " wor",
        "ld",
    ]
    assert wrap.column == len("Hello world")


def test_control_characters_are_shown_not_obeyed() -> None:
    assert printable("a\tb\nc\x1b]52;c;eHg=\x07\r\x9b2J\x7f") == "a\tb\nc�]52;c;eHg=���2J�"
    assert "\x1b" not in WordWrap(80).feed("\x1b[2Jx")
