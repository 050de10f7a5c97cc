"""Stream an answer with tritonclient: python examples/triton_stream.py [HOST:PORT] [QUESTION]."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France?"


def show(result: triton.InferResult | None, error: Exception | None) -> None:
    """Print each piece of text as it comes."""
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
    elif result is not None:
        print(result.as_numpy("text_output")[0].decode(), end="", flush=True)


def tensor(name: str, value: bytes | bool) -> triton.InferInput:
    """An input of one element."""
    array = np.array([value], dtype=np.bool_ if isinstance(value, bool) else np.object_)
    made = triton.InferInput(name, [1], "BOOL" if isinstance(value, bool) else "BYTES")
    made.set_data_from_numpy(array)
    return made


with triton.InferenceServerClient(ADDRESS) as client:
    model = client.get_model_repository_index().models[0].name
    client.start_stream(show)
    client.async_stream_infer(
        model,
        [
            tensor("messages", json.dumps([{"role": "user", "content": QUESTION}]).encode()),
            tensor(
                "sampling_parameters", json.dumps({"temperature": 0, "max_tokens": 64}).encode()
            ),
            tensor("stream", True),
        ],
        request_id="1",
    )
    client.stop_stream()
print()
