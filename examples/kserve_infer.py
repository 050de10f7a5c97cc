"""Complete a text with kserve's gRPC client: python examples/kserve_infer.py [HOST:PORT] [MODEL].

Needs an environment of its own: kserve and tritonclient cannot both be loaded in one process.
"""

import asyncio
import sys

from kserve import InferenceGRPCClient, InferInput, InferRequest

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
MODEL = sys.argv[2] if len(sys.argv) > 2 else "smollm2"


async def main() -> None:
    """Ask once and print the answer."""
    client = InferenceGRPCClient(url=ADDRESS)
    text = InferInput("text_input", [1], "BYTES", data=["The capital of France is"])
    # Its parameters are texts, whole numbers and booleans; a fraction goes as a text.
    asked = InferRequest(MODEL, [text], parameters={"max_tokens": 16, "temperature": "0.0"})
    try:
        response = await client.infer(asked)
    finally:
        await client.close()
    print(response.outputs[0].data[0])


asyncio.run(main())
