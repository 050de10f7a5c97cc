"""Finds marks in text that comes in pieces."""

import re


class Marks:
    """Texts to look for. One that begins another's text is found only where the other is not."""

    def __init__(self, *marks: str) -> None:
        longest_first = sorted(marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._beginnings = {mark[:size] for mark in marks for size in range(1, len(mark))}
        self._longest = max(map(len, marks), default=0)

    def split(self, text: str) -> tuple[str, str, str]:
        """Return what is before the first mark, the mark, and what follows.

        Without a mark in it: what surely is none, "", and an end that may be one's beginning.
        """
        found = self._pattern.search(text) if self._longest else None
        if found is not None:
            return text[: found.start()], found.group(), text[found.end() :]
        for size in range(min(len(text), self._longest - 1), 0, -1):
            if text[-size:] in self._beginnings:
                return text[:-size], "", text[-size:]
        return text, "", ""
