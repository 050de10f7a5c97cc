"""The copy-paste lines that `penstock serve` ends its start with."""

import json
import sys
from collections.abc import Sequence
from typing import Any

_QUESTION = "What is the capital of France?"


def announcement(ready: dict[str, Any], *, needs: Sequence[str] = ()) -> str:
    """Return what to print for a ready file's content: the URLs, and one example per client.

    Examples for clients with special `needs` would only work here: those are just named.
    """
    model = ready["models"][0]
    parts = [f"\nPenstock is ready: {', '.join(ready['models'])}"]
    if "grpc" in ready:
        parts.append(f"  KServe gRPC   {ready['grpc']}")
    if "http" in ready:
        parts.append(f"  OpenAI HTTP   {ready['http']}/v1   (try {ready['http']}/docs)")
    parts.append(f"  metrics       {ready['metrics']}/metrics")
    if needs:
        parts.append(f"  clients need  {', '.join(needs)}   (docs/security.md)")
        return "\n".join(parts) + "\n"
    if "grpc" in ready:
        parts.append(_triton(ready["grpc"], model))
    if "http" in ready:
        parts += [_openai(ready["http"], model), _curl(ready["http"], model)]
    return "\n".join(parts) + "\n"


def _triton(address: str, model: str) -> str:
    messages = json.dumps([{"role": "user", "content": _QUESTION}])
    return f"""
tritonclient:
{sys.executable} - <<'END'
import numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient({address!r})
messages = triton.InferInput("messages", [1], "BYTES")
messages.set_data_from_numpy(np.array([{messages!r}.encode()], dtype=object))
answer = client.infer({model!r}, [messages], parameters={{"max_tokens": 48, "temperature": 0}})
print(answer.as_numpy("text_output")[0].decode())
END"""


def _openai(url: str, model: str) -> str:
    return f"""
openai:
{sys.executable} - <<'END'
import openai
client = openai.OpenAI(base_url="{url}/v1", api_key="none")
question = [{{"role": "user", "content": {_QUESTION!r}}}]
answer = client.chat.completions.create(
    model={model!r}, messages=question, temperature=0, stream=True)
for part in answer:
    print(part.choices[0].delta.content or "", end="", flush=True)
END"""


def _curl(url: str, model: str) -> str:
    question = [{"role": "user", "content": _QUESTION}]
    body = {"model": model, "messages": question, "temperature": 0, "stream": True}
    return f"""
curl:
curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\
  -d '{json.dumps(body)}'"""
