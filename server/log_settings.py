"""What is logged and how: the settings of Triton's logging extension that hold here."""

from collections.abc import Mapping

from runtime.errors import InvalidRequest
from runtime.logs import hide_levels, log_format, log_level, set_log_format, set_log_level
from server.shared_values import SharedValues

Value = bool | int | str
Values = dict[str, Value]

VERBOSE = "log_verbose_level"
FILE = "log_file"
FORMAT = "log_format"
DEFAULT_FORMAT = "default"
ISO8601 = "ISO8601"
_SWITCHES = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
_LOG = "log"


class LogSettings:
    """Changes this process's logging, and that of the others of its group.

    A verbose level above 0 shows debug lines. The format `default` is what the process was started
    with; ISO8601 is text with the time in UTC. Lines go to stderr, so that no file can be set.
    """

    def __init__(self, shared: SharedValues[Values] | None = None) -> None:
        self._shared = shared or SharedValues(Values)
        self._format = log_format()
        self._level = log_level()
        self._defaults: Values = {
            FILE: "", **_of_level(self._level), FORMAT: DEFAULT_FORMAT,
        }  # fmt: skip
        self._values = dict(self._defaults)

    def shown(self) -> Mapping[str, Value]:
        """All settings."""
        if log_level() != self._level:
            # Somebody has set it at the status port.
            self._level = log_level()
            self._values |= _of_level(self._level)
        return self._values

    def update(self, changes: Mapping[str, Value | None]) -> None:
        """Change settings; None puts one back to what it was at the start.

        Raises InvalidRequest, and nothing has changed; OSError where a group's file fails.
        """
        values = dict(self.shown())
        for name, value in changes.items():
            if name not in self._defaults:
                known = ", ".join(self._defaults)
                raise InvalidRequest(f"no such log setting: {name!r}; there are {known}",
                                     param=name)  # fmt: skip
            values[name] = self._defaults[name] if value is None else self._checked(name, value)
        if changes:
            self._apply(values)
            self._shared.put(_LOG, values)

    def look(self) -> None:
        """Take over what others of the group have set."""
        values = self._shared.of(_LOG) if self._shared.look() else None
        if values is not None:
            self._apply(values)

    def _checked(self, name: str, value: Value) -> Value:
        kind = type(self._defaults[name])
        if type(value) is not kind:
            wanted = {bool: "a bool", int: "an uint32", str: "a string"}[kind]
            raise InvalidRequest(f"{name} must be {wanted}", param=name)
        if name == FILE and value:
            raise InvalidRequest(f"{FILE} is not offered: log lines go to stderr", param=FILE)
        if name == FORMAT and value not in (DEFAULT_FORMAT, ISO8601):
            raise InvalidRequest(f"{FORMAT} must be {DEFAULT_FORMAT} or {ISO8601}, not {value!r}",
                                 param=FORMAT)  # fmt: skip
        return value

    def _apply(self, values: Values) -> None:
        on = [level for name, level in _SWITCHES.items() if values[name]]
        self._level = "debug" if values[VERBOSE] else next(iter(on), "error")
        set_log_level(self._level)
        hide_levels(set(_SWITCHES.values()) - set(on))
        set_log_format("iso8601" if values[FORMAT] == ISO8601 else self._format)
        self._values = values


def _of_level(level: str) -> Values:
    levels = list(_SWITCHES.values())
    least = levels.index(level) if level in levels else 0
    switches: Values = {name: levels.index(it) >= least for name, it in _SWITCHES.items()}
    return {**switches, VERBOSE: int(level == "debug")}
