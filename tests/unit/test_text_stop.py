from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.stop import StopMatcher

WORDS = st.text("ab\n", max_size=25)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def naive(text: str, stops: Sequence[str], free: int, *, include: bool) -> tuple[str, str | None]:
    """Cut at the stop string that ends first after the first `free` characters."""
    for end in range(free + 1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


@given(WORDS, STOPS, st.data(), st.booleans())
def test_any_chunking_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], data: st.DataObject, include: bool
) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    free = data.draw(st.sampled_from([0, *borders]))
    matcher = StopMatcher(stops, include=include)
    sent = ""
    for start, end in zip([0, *borders], [*borders, len(text)], strict=True):
        sent += matcher.feed(text[start:end], armed=end > free)
    sent += matcher.flush()
    assert (sent, matcher.matched) == naive(text, stops, free, include=include)


@given(st.lists(WORDS, max_size=6), STOPS)
def test_no_more_is_held_back_than_may_become_a_stop(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    sent, text = "", ""
    for part in parts:
        sent += matcher.feed(part)
        text += part
        if matcher.matched is not None:
            return
        held = text[len(sent) :]
        assert text.startswith(sent)
        starts = [n for n in range(len(text) + 1) if any(is_start(text[n:], s) for s in stops)]
        assert len(held) == len(text) - min([*starts, len(text)])


def is_start(tail: str, stop: str) -> bool:
    return bool(tail) and len(tail) < len(stop) and stop.startswith(tail)


def test_a_stop_string_across_chunks_is_left_out() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert [matcher.feed(part) for part in ("Hi.\n", "\nUs", "er: and more")] == ["Hi.", "", ""]
    assert matcher.matched == "\n\nUser:"
    assert matcher.feed("later") == matcher.flush() == ""


def test_a_held_tail_comes_out_when_it_is_no_stop() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("the EN") == "the "
    assert matcher.feed("D") == ""
    matcher = StopMatcher(["END"])
    assert matcher.feed("the EN") == "the "
    assert matcher.feed("TRY E") == "ENTRY "
    assert matcher.flush() == "E"


def test_included_stop_strings_hold_nothing_back() -> None:
    matcher = StopMatcher(["END"], include=True)
    assert [matcher.feed(part) for part in ("an EN", "D of it")] == ["an EN", "D"]
    assert matcher.flush() == ""


@pytest.mark.parametrize(("stops", "sent"), [(["bc", "abcd"], "xa"), (["abcd"], "x")])
def test_the_stop_that_is_complete_first_wins(stops: list[str], sent: str) -> None:
    assert StopMatcher(stops).feed("xabcd") == sent
