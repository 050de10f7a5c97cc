"""Which requests are traced: the settings of Triton's trace extension that hold here.

They stand for all models, or for one, which then follows the others in what is not its own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.errors import InvalidRequest
from server.shared_values import SharedValues

LEVEL = "trace_level"
RATE = "trace_rate"
COUNT = "trace_count"
MODE = "trace_mode"
OFF = "OFF"
TIMESTAMPS = "TIMESTAMPS"
OPENTELEMETRY = "opentelemetry"
ALL_MODELS = ""
_NUMBER = re.compile(r"-?\d{1,9}")

Own = dict[str, str]


@dataclass(slots=True)
class _Scope:
    """What was set for one model or for all, and what has been counted since."""

    own: Own = field(default_factory=dict)
    seen: int = 0
    left: int = -1


class TraceSettings:
    """Decides for each request. `collector` says whether there is one to send traces to.

    A request that comes with a trace of its client's is traced unless the level is OFF, whatever
    rate and count say; of the others every `trace_rate`-th, 0 for none, until `trace_count` are
    traced, -1 for no limit.
    """

    def __init__(self, *, collector: bool, shared: SharedValues[Own] | None = None) -> None:
        self._collector = collector
        self._shared = shared or SharedValues(Own)
        self._scopes = {ALL_MODELS: _Scope()}
        self._defaults = {
            LEVEL: TIMESTAMPS if collector else OFF, RATE: "1", COUNT: "-1", MODE: OPENTELEMETRY,
        }  # fmt: skip

    def samples(self, model: str, *, from_client: bool) -> bool:
        """Whether a request for a model is traced; `from_client`: it comes with a trace."""
        everybody = self._scopes[ALL_MODELS]
        scope = self._scopes.get(model, everybody)
        if self._value(scope, LEVEL) == OFF:
            return False
        if from_client:
            return True
        rate = int(self._value(scope, RATE))
        scope.seen += 1
        if rate == 0 or scope.seen % rate:
            return False
        counting = scope if COUNT in scope.own else everybody
        if counting.left == 0:
            return False
        if counting.left > 0:
            counting.left -= 1
        return True

    def shown(self, model: str = ALL_MODELS) -> Mapping[str, str]:
        """All settings as they hold for a model, or for all; the count is what is left of it."""
        everybody = self._scopes[ALL_MODELS]
        scope = self._scopes.get(model, everybody)
        counting = scope if COUNT in scope.own else everybody
        values = {name: self._value(scope, name) for name in self._defaults}
        return values | {COUNT: str(counting.left)}

    def update(self, model: str, changes: Mapping[str, Sequence[str]]) -> None:
        """Change a model's settings, or all models'; no value puts one back to what it was before.

        Raises InvalidRequest, and nothing has changed; OSError where a group's file fails.
        """
        own = dict(self._scopes.get(model, _Scope()).own)
        for name, values in changes.items():
            if not values:
                self._check_name(name)
                own.pop(name, None)
            else:
                own[name] = self._checked(name, values)
        if changes:
            # Set again, a count begins again.
            self._set(model, own, fresh=COUNT in changes)
            self._shared.put(model, own)

    def look(self) -> None:
        """Take over what others of the group have set."""
        if self._shared.look():
            for model, own in self._shared.known.items():
                self._set(model, own)

    def _set(self, model: str, own: Own, *, fresh: bool = False) -> None:
        scope = self._scopes.setdefault(model, _Scope())
        if fresh or own.get(COUNT) != scope.own.get(COUNT):
            scope.left = int(own.get(COUNT, "-1"))
        scope.own = own
        if not own and model != ALL_MODELS:
            del self._scopes[model]

    def _value(self, scope: _Scope, name: str) -> str:
        everybody = self._scopes[ALL_MODELS].own
        return scope.own.get(name) or everybody.get(name) or self._defaults[name]

    def _check_name(self, name: str) -> None:
        if name not in self._defaults:
            known = ", ".join(self._defaults)
            raise InvalidRequest(f"no such trace setting: {name!r}; there are {known}", param=name)

    def _checked(self, name: str, values: Sequence[str]) -> str:
        self._check_name(name)
        if len(values) > 1:
            raise InvalidRequest(f"{name} takes one value", param=name)
        value = values[0]
        if name == LEVEL:
            self._check_level(value)
        elif name != MODE:
            return _number(name, value, least=0 if name == RATE else -1)
        elif value != OPENTELEMETRY:
            raise InvalidRequest(f"{MODE} is {OPENTELEMETRY} here", param=MODE)
        return value

    def _check_level(self, value: str) -> None:
        if value not in (OFF, TIMESTAMPS):
            raise InvalidRequest(f"{LEVEL} must be {OFF} or {TIMESTAMPS}, not {value!r}",
                                 param=LEVEL)  # fmt: skip
        if value != OFF and not self._collector:
            raise InvalidRequest(
                f"{LEVEL} {value} needs a collector: start the server with --otlp-endpoint",
                param=LEVEL,
            )


def _number(name: str, value: str, *, least: int) -> str:
    if not _NUMBER.fullmatch(value) or int(value) < least:
        raise InvalidRequest(f"{name} must be a number from {least} on, not {value!r}", param=name)
    return str(int(value))
