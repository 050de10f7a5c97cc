"""Runs vLLM's own parsers, in a process of its own: importing one costs 15 CPU-seconds.

Reads a JSON object {"model", "tokens", "calls": {name: texts}, "thoughts": {name: texts}, "tools"},
writes {"calls": {name: [[content, [[function, arguments], ...]], ...]}, "thoughts": {name:
[[reasoning, content], ...]}}.
"""

import json
import sys
from typing import Any

from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager


def main() -> None:
    asked = json.load(sys.stdin)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(asked["model"])
    tokenizer.add_special_tokens({"additional_special_tokens": asked["tokens"]})
    request = ChatCompletionRequest.model_validate(
        {"messages": [{"role": "user", "content": "x"}], "model": "m", "tools": asked["tools"]}
    )
    calls = {
        name: [_calls(name, tokenizer, request, text) for text in texts]
        for name, texts in asked["calls"].items()
    }
    thoughts = {
        name: [_thoughts(name, tokenizer, request, text) for text in texts]
        for name, texts in asked["thoughts"].items()
    }
    json.dump({"calls": calls, "thoughts": thoughts}, sys.stdout)


def _calls(name: str, tokenizer: Any, request: Any, text: str) -> Any:
    parser = ToolParserManager.get_tool_parser(name)(tokenizer, request.tools)
    found = parser.extract_tool_calls(text, request)
    return found.content or "", [
        [it.function.name, it.function.arguments] for it in found.tool_calls or ()
    ]


def _thoughts(name: str, tokenizer: Any, request: Any, text: str) -> Any:
    parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    reasoning, content = parser.extract_reasoning(text, request)
    return reasoning or "", content or ""


main()
