"""The yardstick: a bare grpc.aio server that streams one fixed message over and over.

Run as a process: `python -m benchmarks.yardstick INTERVAL_S`. It prints its address. The first
request message of a stream says in its `id` how many messages to send, one per interval. What it
costs per message is what any grpc.aio server costs that does nothing else.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from benchmarks.ticks import Ticks
from wire import inference_pb2 as pb
from wire.pool import KSERVE

MESSAGE = pb.ModelStreamInferResponse(
    infer_response=pb.ModelInferResponse(
        model_name="sim",
        id="0",
        outputs=[{"name": "text_output", "datatype": "BYTES", "shape": [1]}],
        raw_output_contents=[b"\5\0\0\0 word"],
    )
).SerializeToString()


async def serve(interval_s: float) -> None:
    """Serve until killed."""
    ticks = Ticks(interval_s)

    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        request = pb.ModelInferRequest.FromString(await anext(requests))
        for _ in range(int(request.id)):
            await ticks.wait()
            await context.write(MESSAGE)

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(KSERVE, {"ModelStreamInfer": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await ticks.run()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
