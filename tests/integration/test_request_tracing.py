"""One tree of spans per request, from the front door's process to the worker's."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.integration.otlp_collector import Collector, otlp_collector
from tests.integration.test_cli import SIM, penstock

CLIENT_TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
SPANS = {"admit", "tokenize", "route", "relay", "worker.generate", "queue", "prefill", "decode"}


def chat(http: str, **headers: str) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{http}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4


def infer_with_tritonclient(grpc: str, traceparent: str) -> None:
    """In a process of its own: tritonclient's messages and another client's would clash."""
    code = (
        "import sys, numpy as np, tritonclient.grpc as triton\n"
        "text = triton.InferInput('text_input', [1], 'BYTES')\n"
        "text.set_data_from_numpy(np.array(['hi'], dtype=object))\n"
        "client = triton.InferenceServerClient(sys.argv[1])\n"
        "client.infer('smollm2', [text], headers={'traceparent': sys.argv[2]})\n"
    )
    subprocess.run([sys.executable, "-c", code, grpc, traceparent], check=True, timeout=40)


def check_tree(collector: Collector, endpoint: str) -> None:
    root = collector.named(endpoint)
    assert (root.trace_id, root.parent_id) == (CLIENT_TRACE, CLIENT_SPAN)
    below = collector.children_of(root)
    assert set(below) == {"admit", "tokenize", "route", "relay"}
    (generate,) = collector.children_of(below["relay"]).values()
    assert (generate.name, generate.service) == ("worker.generate", "penstock-worker")
    assert set(collector.children_of(generate)) == {"queue", "prefill", "decode"}
    assert root.service == "penstock-frontend"
    assert root.attributes["gen_ai.response.model"] == "smollm2"
    assert not root.failed


def test_a_requests_spans_form_one_tree_across_processes(tmp_path: Path) -> None:
    traceparent = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
    for endpoint in ("/v1/chat/completions", "ModelInfer"):
        with otlp_collector() as collector:
            flags = ("--grpc-port=0", "--http-port=0", "--metrics-port=0")
            with penstock(
                tmp_path, "serve", "smollm2", *SIM, *flags,
                f"--otlp-endpoint={collector.endpoint}", OTEL_BSP_SCHEDULE_DELAY="50",
            ) as serving:  # fmt: skip
                if endpoint == "ModelInfer":
                    infer_with_tritonclient(serving.ready["grpc"], traceparent)
                else:
                    chat(serving.ready["http"], traceparent=traceparent)
                names = {span.name for span in collector.wait(9)}
            assert names == SPANS | {endpoint}
            check_tree(collector, endpoint)
