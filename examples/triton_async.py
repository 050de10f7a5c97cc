"""Complete several texts at once: python examples/triton_async.py [HOST:PORT] [TEXT...]."""

import sys
from concurrent.futures import Future

import numpy as np
import tritonclient.grpc as triton

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
TEXTS = sys.argv[2:] or ["The capital of France is", "The capital of Italy is"]
Answer = Future[triton.InferResult]


def ask(client: triton.InferenceServerClient, model: str, text: str) -> Answer:
    """Start one request; the answer comes on a thread of the client."""
    answer: Answer = Future()

    def done(result: triton.InferResult | None, error: Exception | None) -> None:
        answer.set_exception(error) if error is not None else answer.set_result(result)

    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    client.async_infer(model, [tensor], done, parameters={"max_tokens": 16, "temperature": 0})
    return answer


with triton.InferenceServerClient(ADDRESS) as client:
    model = client.get_model_repository_index().models[0].name
    for answer in [ask(client, model, text) for text in TEXTS]:
        print(answer.result(timeout=60).as_numpy("text_output")[0].decode())
