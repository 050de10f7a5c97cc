"""What msgspec says is wrong with a client's JSON, as our errors say it."""

import re

from runtime.errors import InvalidRequest

_MISSING = re.compile(r"missing required field `(\w+)`")
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*?)`$")


def type_error(text: str) -> InvalidRequest:
    """The error for what msgspec says is wrong with a body."""
    # msgspec words it "Expected `int`, got `str` - at `$.max_tokens`".
    found = _PATH.search(text)
    path = found.group(1) if found else ""
    what = text[: found.start()] if found else text
    missing = _MISSING.search(what)
    if missing:
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return InvalidRequest(f"{path}: missing", param=path)
    what = what[0].lower() + what[1:]
    return InvalidRequest(f"{path}: {what}" if path else what, param=path or None)
