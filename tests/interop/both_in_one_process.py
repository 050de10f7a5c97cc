"""A program: tritonclient and our classes side by side, imported in the order given.

Arguments: "ours-first" or "theirs-first", then the major version protobuf must have.
"""

import asyncio
import sys


def main() -> None:
    order, major = sys.argv[1:]
    if order == "ours-first":
        import wire.inference_pb2
        import wire.text_request  # noqa: F401
    import google.protobuf
    import numpy as np
    import tritonclient.grpc as client
    from tritonclient.grpc import model_config_pb2  # noqa: F401

    from runtime.rpc import CallInfo
    from runtime.turns import in_turns
    from wire.generate import ChoiceDelta, GenerateDelta
    from wire.inference_pb2 import ModelInferRequest
    from wire.text_request import decode_text_request
    from wire.text_response import encode_text_response

    assert google.protobuf.__version__.split(".")[0] == major, google.protobuf.__version__
    text = client.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array(["héllo".encode()], dtype=np.object_))
    flag = client.InferInput("return_output_ids", [1], "BOOL")
    flag.set_data_from_numpy(np.array([True]))
    theirs = client._utils._get_inference_request(
        "m", [text, flag], "", "r", None, "s", False, False, 3, 1000, {"temperature": 0.5}
    )
    message = ModelInferRequest.FromString(theirs.SerializeToString())
    steps = decode_text_request(message, CallInfo(method="ModelInfer"), streaming_rpc=False)
    request, selection = asyncio.run(in_turns(steps))
    assert (request.prompt, request.session_id, request.priority) == ("héllo", "s", 3)
    assert request.sampling.temperature == 0.5
    delta = GenerateDelta(choices=[ChoiceDelta(text="wörld", token_ids=[1, 2])])
    answer = encode_text_response(request, selection, delta)
    read = client.InferResult(
        client.service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    )
    assert read.as_numpy("text_output").tolist() == ["wörld".encode()]
    assert read.as_numpy("output_ids").tolist() == [1, 2]
    print("both work under protobuf", google.protobuf.__version__)


if __name__ == "__main__":
    main()
