"""Complete a text over KServe's HTTP: python examples/triton_http.py [HOST:PORT] [TEXT]."""

import sys

import numpy as np
import tritonclient.http as triton

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
TEXT = sys.argv[2] if len(sys.argv) > 2 else "The capital of France is"

with triton.InferenceServerClient(ADDRESS) as client:
    model = client.get_model_repository_index()[0]["name"]
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([TEXT.encode()], dtype=np.object_))
    result = client.infer(model, [text], parameters={"max_tokens": 16, "temperature": 0})
    print(result.as_numpy("text_output")[0].decode())
