"""vLLM's own parsers, for a front door that has none of its own for a model.

A process of its own (`python -m worker.vllm_parsers`), because importing one costs 15 CPU-seconds
and 620 MiB. It ends when its standard input does, or its parent.
"""

import os
import sys
from typing import Any, BinaryIO

from runtime.process import die_with_parent
from wire.generate import ToolCallDelta
from wire.parser_messages import LENGTH_BYTES, Asked, Feed, Open, Parsed, decode_asked, framed


class Parsers:
    """The choices that are being parsed. Nothing raises: what goes wrong is an answer."""

    def __init__(self) -> None:
        self._running: dict[int, Any] = {}
        self._failed: dict[int, str] = {}
        self._tokenizers: dict[str, Any] = {}

    def take(self, asked: Asked) -> Parsed | None:
        """Answer a message; only a Feed has an answer."""
        if isinstance(asked, Open):
            try:
                self._running[asked.number] = self._open(asked)
            except Exception as error:  # noqa: BLE001 - whatever vLLM raises is the answer
                self._failed[asked.number] = f"{type(error).__name__}: {error}"
            return None
        if isinstance(asked, Feed):
            return self._feed(asked)
        self._running.pop(asked.number, None)
        self._failed.pop(asked.number, None)
        return None

    def _open(self, asked: Open) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager

        tokenizer = self._tokenizer(asked.model)
        kind = ParserManager.get_parser(
            tool_parser_name=asked.tool_call_parser or None,
            reasoning_parser_name=asked.reasoning_parser or None,
            enable_auto_tools=True,
            tokenizer=tokenizer,
        )
        request = ChatCompletionRequest.model_validate(
            {
                "model": "m",
                "messages": [{"role": "user", "content": ""}],
                "chat_template_kwargs": asked.variables,
                **({"tools": asked.tools, "tool_choice": "auto"} if asked.tools else {}),
            }
        )
        variables = {"chat_template_kwargs": asked.variables}
        parser = kind(tokenizer, request.tools, **variables) if kind is not None else None
        return parser, request, asked.prompt_ids

    def _tokenizer(self, model: str) -> Any:
        from transformers import PreTrainedTokenizerFast

        if model not in self._tokenizers:
            self._tokenizers[model] = PreTrainedTokenizerFast.from_pretrained(model)
        return self._tokenizers[model]

    def _feed(self, asked: Feed) -> Parsed:
        number = asked.number
        if number not in self._running:
            return Parsed(number=number, error=self._failed.get(number, "it is not known"))
        parser, request, prompt_ids = self._running[number]
        try:
            found = parser.parse_delta(
                asked.text,
                asked.token_ids,
                request,
                prompt_ids,
                finished=asked.finished,
            )
        except Exception as error:  # noqa: BLE001 - whatever vLLM raises is the answer
            return Parsed(number=number, error=f"{type(error).__name__}: {error}")
        if found is None:
            return Parsed(number=number)
        return Parsed(
            number=number,
            reasoning=found.reasoning or "",
            content=found.content or "",
            tool_calls=[_call(call) for call in found.tool_calls or ()],
            reasons=bool(found.reasoning),
        )


def _call(call: Any) -> ToolCallDelta:
    function = call.function
    return ToolCallDelta(
        index=call.index,
        id=call.id if function is not None and function.name else None,
        name=function.name if function is not None else None,
        arguments=(function.arguments or "") if function is not None else "",
    )


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Answer messages until there are no more."""
    parsers = Parsers()
    while head := source.read(LENGTH_BYTES):
        answer = parsers.take(decode_asked(source.read(int.from_bytes(head, "little"))))
        if answer is not None:
            target.write(framed(answer))
            target.flush()


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    die_with_parent(int(sys.argv[1]))
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, target)


if __name__ == "__main__":
    main()
