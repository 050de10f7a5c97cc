"""Text that a model or a server sent, made fit for a terminal."""

import re

# A terminal would obey them: they move the cursor, write the clipboard, or answer as if typed.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return `text` with a mark in place of each control character but tab and newline."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
