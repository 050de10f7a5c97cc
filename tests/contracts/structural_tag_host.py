"""Runs xgrammar, vLLM's engine of structured outputs, in a process of its own: it imports torch.

Reads a JSON list of [structural tag, texts], writes whether each text is all that the tag asks for.
"""

import json
import sys
from typing import Any

import xgrammar


def main() -> None:
    vocabulary = [bytes([it]) for it in range(256)]
    tokenizer = xgrammar.TokenizerInfo([*vocabulary, b"</s>"], stop_token_ids=[len(vocabulary)])
    compiler = xgrammar.GrammarCompiler(tokenizer)

    def allowed(grammar: Any, text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(grammar)
        return bool(matcher.accept_string(text) and matcher.accept_token(len(vocabulary)))

    answer = []
    for tag, texts in json.load(sys.stdin):
        grammar = compiler.compile_structural_tag(tag)
        answer.append([allowed(grammar, text) for text in texts])
    json.dump(answer, sys.stdout)


main()
