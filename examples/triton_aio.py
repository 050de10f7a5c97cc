"""Stream an answer on asyncio: python examples/triton_aio.py [HOST:PORT] [QUESTION]."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France?"
MESSAGES = json.dumps([{"role": "user", "content": QUESTION}]).encode()
SAMPLING = json.dumps({"temperature": 0, "max_tokens": 64}).encode()


def tensor(name: str, value: bytes | bool) -> triton.InferInput:
    """An input of one element."""
    array = np.array([value], dtype=np.bool_ if isinstance(value, bool) else np.object_)
    made = triton.InferInput(name, [1], "BOOL" if isinstance(value, bool) else "BYTES")
    made.set_data_from_numpy(array)
    return made


async def requests(model: str) -> AsyncIterator[dict[str, Any]]:
    """The requests of the stream: here one."""
    inputs = [
        tensor("messages", MESSAGES),
        tensor("sampling_parameters", SAMPLING),
        tensor("stream", True),
    ]
    yield {"model_name": model, "inputs": inputs, "request_id": "1"}


async def main() -> None:
    """Print each piece of text as it comes."""
    async with triton.InferenceServerClient(ADDRESS) as client:
        index = await client.get_model_repository_index()
        async for result, error in client.stream_infer(requests(index.models[0].name)):
            if error is not None:
                sys.exit(f"error: {error}")
            print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
    print()


asyncio.run(main())
