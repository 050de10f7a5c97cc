"""The yardstick: a bare grpc.aio server that streams one fixed message over and over.

Run as a process: `python -m benchmarks.yardstick INTERVAL_S`. It prints its address. A stream gets
as many messages as the `max_tokens` of its request's sampling parameters, one per interval. What
it costs per message is what any grpc.aio server costs that does nothing else.
"""

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from benchmarks.ticks import Ticks
from wire import inference_pb2 as pb
from wire.pool import KSERVE

RESPONSE = pb.ModelInferResponse(
    model_name="sim",
    id="0",
    outputs=[{"name": "text_output", "datatype": "BYTES", "shape": [1]}],
    raw_output_contents=[b"\5\0\0\0 word"],
)
ANSWER = RESPONSE.SerializeToString()
MESSAGE = pb.ModelStreamInferResponse(infer_response=RESPONSE).SerializeToString()


def _max_tokens(request: pb.ModelInferRequest) -> int:
    named = zip(request.inputs, request.raw_input_contents, strict=True)
    sampling = next(raw for tensor, raw in named if tensor.name == "sampling_parameters")
    tokens: int = json.loads(sampling[4:])["max_tokens"]
    return tokens


async def serve(interval_s: float) -> None:
    """Serve until killed."""
    ticks = Ticks(interval_s)

    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        request = pb.ModelInferRequest.FromString(await anext(requests))
        for _ in range(_max_tokens(request)):
            await ticks.wait()
            await context.write(MESSAGE)

    async def unary(request: bytes, context: Any) -> bytes:
        pb.ModelInferRequest.FromString(request)
        return ANSWER

    server = grpc.aio.server()
    handlers = {
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream),
        "ModelInfer": grpc.unary_unary_rpc_method_handler(unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(KSERVE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await ticks.run()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
