"""Breaks an answer's lines between words while it is being written to a terminal."""

from prompt_toolkit.utils import get_cwidth

from cli.terminal_text import printable


class WordWrap:
    """Shows every piece at once. `column` is where the cursor is.

    A word that turns out too long for its line is erased there and written on the next one.
    """

    def __init__(self, width: int) -> None:
        # A character in the last column leaves the cursor at a place that terminals disagree on.
        self._width = max(width - 1, 1)
        self.column = 0
        self._word = ""

    def feed(self, text: str) -> str:
        """Return what to write to the terminal for the next piece."""
        return "".join(map(self._feed_one, printable(text.expandtabs(4))))

    def _feed_one(self, char: str) -> str:
        if char == "\n":
            self.column, self._word = 0, ""
            return char
        width = get_cwidth(char)
        if self.column + width <= self._width:
            self.column += width
            self._word = "" if char == " " else self._word + char
            return char
        return self._break_before(char, width)

    def _break_before(self, char: str, width: int) -> str:
        word, self._word, self.column = self._word, "", 0
        if char == " ":
            return "\n"
        erase = ""
        moved = get_cwidth(word)
        if moved + width <= self._width:
            erase = f"\x1b[{moved}D\x1b[K" if moved else ""
            self._word, self.column = word + char, moved + width
            return f"{erase}\n{word}{char}"
        self._word, self.column = char, width
        return f"\n{char}"
