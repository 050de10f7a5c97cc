"""What models of each family write, for parsers of ours and vLLM's."""

from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "detailed": {"type": "boolean"},
                "where": {"type": "object"},
                "note": {"type": ["string", "null"]},
                "factor": {"type": "number"},
            },
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object"}},
}
TOOLS: list[dict[str, Any]] = [WEATHER, TIME]

_SEP, _BEGIN, _END = "<｜tool▁sep｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


def deepseek(*calls: tuple[str, str]) -> str:
    inner = "\n".join(
        f"{_BEGIN}function{_SEP}{name}\n```json\n{arguments}\n```{_END}"
        for name, arguments in calls
    )
    return f"{_ALL}{inner}{_ALL_END}"


def deepseek31(*calls: tuple[str, str]) -> str:
    return _ALL + "".join(f"{_BEGIN}{n}{_SEP}{a}{_END}" for n, a in calls) + _ALL_END


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def xml_call(name: str, **values: object) -> str:
    inner = "".join(f"<parameter={key}>\n{it}\n</parameter>\n" for key, it in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
CALLS: dict[str, list[str]] = {
    "hermes": [
        "",
        "No call: 1 < 2, {a}.",
        hermes(PARIS),
        "I will look.\n" + hermes(PARIS),
        hermes(PARIS, '{"name": "get_time", "arguments": {}}'),
        hermes('{"name": "get_weather", "arguments": {"city": "Zürich 🌧", "where": {"a": [{}]}}}'),
        hermes('{"arguments": {"city": "a \\"b\\" }{"}, "name": "get_weather"}'),
        "<tool_call>" + PARIS,
        "a <tool_cal is no mark",
    ],
    "qwen3_coder": [
        "",
        "No call: 1 < 2, <b>x</b>.",
        xml_call("get_weather", city="Paris"),
        "I will look.\n" + xml_call("get_weather", city="Zürich 🌧", days="3", detailed="true"),
        xml_call("get_weather", city='a\nb "c" \\', where='{"a": [1, {}]}', factor="1.50"),
        xml_call("get_weather", note="null", days="many", city="1 < 2 </b>"),
        xml_call("get_time"),
        xml_call("get_weather", city="Paris") + "\n" + xml_call("get_time"),
    ],
    "llama3_json": [
        "",
        "No call at all.",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Zürich 🌧"}}',
        '{"name": "get_weather", "arguments": {"where": {"a": [1, {}]}}}; '
        '{"name": "get_time", "parameters": {}}',
        '{"city": "no call"}',
    ],
    "pythonic": [
        "",
        "No call [1] at all.",
        "[1] a footnote",
        "[get_weather(city='Paris')]",
        '[get_weather(city="Zürich 🌧, (a) [b]", days=3, detailed=True), get_time()]',
        "[get_weather(where={'a': [1, None, -2.5]}, note=None)]",
        "[get_time()]",
        "[get_weather(city='it\\'s')]",
    ],
    "llama4_pythonic": [
        "",
        "<|python_start|>[get_weather(city='Paris')]<|python_end|>",
        "[get_weather(city='Paris'), get_time()]",
    ],
    "mistral": [
        "",
        "No call at all.",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Zürich 🌧"}}, '
        '{"name": "get_time", "arguments": {}}]',
        'First.[TOOL_CALLS][{"name": "get_time", "arguments": {"a": {"b": ["]", "}"]}}}]',
    ],
    "deepseek_v3": [
        "",
        "No call at all.",
        deepseek(("get_weather", '{"city": "Paris"}')),
        "I will look." + deepseek(("get_weather", '{"city": "Zürich 🌧"}'), ("get_time", "{}")),
        deepseek(("get_weather", '{"where": {"a": "```"}}')),
    ],
    "deepseek_v31": [
        "",
        "No call at all.",
        deepseek31(("get_weather", '{"city": "Paris"}')),
        "I will look." + deepseek31(("get_weather", '{"city": "x"}'), ("get_time", "{}")),
    ],
}
THOUGHTS: dict[str, list[str]] = {
    "deepseek_r1": [
        "<think>First I think.</think>Then I say.",
        "First I think.\n</think>\n\nThen I say.",
        "I only think < 1",
        "<think></think>Said.",
    ],
    "qwen3": [
        "<think>\nFirst I think.\n</think>\n\nThen I say.",
        "First I think.</think>Then I say.",
        "I only think < 1",
    ],
    "granite": [
        "Here is my thought process: I think. Here is my response: I say.",
        "Here's my thought process: I think. Here's my response: I say.",
        "Hello there.",
    ],
}
"""By family; what comes first."""
