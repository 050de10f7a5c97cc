"""TraceSetting and LogSettings: what is traced and logged, asked and changed while serving."""

from typing import Any

from runtime.rpc import CallInfo
from server.fleet import Fleet
from server.log_settings import LogSettings
from server.trace_settings import ALL_MODELS, TraceSettings
from wire import inference_pb2 as pb


class SettingsCalls:
    """The handlers. A setting without a value goes back to its default; answers hold them all."""

    def __init__(self, fleet: Fleet, traces: TraceSettings, logs: LogSettings) -> None:
        self._fleet = fleet
        self._traces = traces
        self._logs = logs

    async def trace_setting(self, message: Any, info: CallInfo) -> Any:
        """TraceSetting, of one model or of all; raises ModelNotFound, InvalidRequest."""
        name = message.model_name
        model = self._fleet.model(name).card.name if name else ALL_MODELS
        self._traces.update(
            model, {key: list(setting.value) for key, setting in message.settings.items()}
        )
        answer = pb.TraceSettingResponse()
        for key, value in self._traces.shown(model).items():
            answer.settings[key].value.append(value)
        return answer

    async def log_settings(self, message: Any, info: CallInfo) -> Any:
        """LogSettings of this server; raises InvalidRequest."""
        self._logs.update({key: _value_of(it) for key, it in message.settings.items()})
        answer = pb.LogSettingsResponse()
        for key, value in self._logs.shown().items():
            setting = answer.settings[key]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return answer


def _value_of(setting: Any) -> bool | int | str | None:
    chosen = setting.WhichOneof("parameter_choice")
    value: bool | int | str | None = None if chosen is None else getattr(setting, chosen)
    return value
