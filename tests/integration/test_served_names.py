"""What grpc.health.v1 says of a model's names, of real processes."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.test_cli import FREE, SIM, chat, penstock
from tests.waiting import wait_until


def serving(address: str, *names: str) -> list[bool]:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return [_is_serving(stub, name) for name in names]


def _is_serving(stub: health_pb2_grpc.HealthStub, name: str) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:  # never heard of
            raise
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_name_that_no_worker_has_any_more_is_not_serving(tmp_path):
    discovery = f"--discovery-path={tmp_path}/d"
    worker = ("worker", "smollm2", *SIM, FREE[0], FREE[2], discovery)
    with (
        penstock(tmp_path, "frontend", *FREE, discovery) as front,
        penstock(tmp_path, *worker, "--model-alias=small"),
    ):

        def states() -> list[bool]:
            return serving(front.ready["grpc"], "smollm2", "small", "tiny")

        wait_until(lambda: states() == [True, True, False], limit_s=10)
        with penstock(tmp_path, *worker, "--model-alias=tiny") as other:
            wait_until(lambda: states() == [True, True, True], limit_s=10)
            assert chat(front.ready["http"], model="tiny")["choices"]
            assert other.stop() == 0
        wait_until(lambda: states() == [True, True, False], limit_s=10)
