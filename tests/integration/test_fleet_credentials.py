"""The hop from front door to worker: the fleet's token and mutual TLS, and their rotation."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.credentials import worker_connector
from runtime.access import bearer
from runtime.errors import ServingError, Unauthenticated
from runtime.grpc_client import RpcChannel
from runtime.shared_token import SharedToken
from runtime.tls import ClientTls
from tests.certificates import Authority, replace
from tests.integration.stack import Stack, grpc_server, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

OLD, NEW = "old-token-of-the-fleet", "new-token-of-the-fleet"
FAST = SimConfig(timing=SimTiming(speedup=0))
WAIT_S = 10.0


def token(file: Path, *lines: str) -> SharedToken:
    file.write_text("\n".join(lines))
    return SharedToken(file=file, flag="--fleet-token-file")


def links(stack: Stack) -> int:
    return sum(len(model.links) for model in stack.door._fleet.models())


async def answers(stack: Stack) -> bool:
    channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
    request = pb.ModelInferRequest(model_name="sim")
    request.parameters["max_tokens"].int64_param = 2
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\2\0\0\0Hi")
    try:
        answer = await channel.unary(KSERVE, "ModelInfer", request, timeout_s=WAIT_S)
    finally:
        await channel.close()
    return bool(answer.outputs)


async def direct(stack: Stack, **options: Any) -> ServingError | None:
    """Call the worker itself; returns its refusal."""
    channel = RpcChannel(stack.workers[0].address, rpc_types=rpc_types, **options)
    try:
        await channel.unary(KSERVE, "ServerLive", pb.ServerLiveRequest(), timeout_s=WAIT_S)
    except ServingError as error:
        return error
    finally:
        await channel.close()
    return None


async def test_a_worker_that_demands_the_token_serves_its_front_door_and_no_stranger(
    model_folder: Path, tmp_path: Path
) -> None:
    ours = token(tmp_path / "token", OLD)
    async with running_stack(
        model_folder,
        sim=FAST,
        worker_server={"access": ours},
        connect=worker_connector(None, ours),
    ) as stack:
        assert await answers(stack)
        assert isinstance(await direct(stack), Unauthenticated)
        wrong, right = bearer(NEW), bearer(OLD)
        assert isinstance(await direct(stack, call_metadata=lambda: wrong), Unauthenticated)
        assert await direct(stack, call_metadata=lambda: right) is None


@pytest.mark.parametrize("sent", [NEW, None])
async def test_a_front_door_without_the_token_says_so_once_and_goes_on_trying(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: str | None
) -> None:
    demanded = token(tmp_path / "demanded", OLD)
    presented = token(tmp_path / "presented", sent) if sent else None
    tried = asyncio.Semaphore(0)

    class Counting:
        def principal(self, metadata: Any) -> str:
            tried.release()
            return demanded.principal(metadata)

    async with (
        asyncio.timeout(WAIT_S),
        running_stack(
            model_folder,
            sim=FAST,
            worker_server={"access": Counting()},
            connect=worker_connector(None, presented),
            connected=False,
        ) as stack,
    ):
        for _ in range(4):
            await tried.acquire()
        assert not stack.door.is_ready()
        said = [it.getMessage() for it in caplog.records if it.name == "server.worker_link"]
        assert len(said) == 1
        assert said[0].startswith("no connection to worker worker-0: ")
        assert "token" in said[0] or "key is needed" in said[0]
        assert OLD not in caplog.text
        assert NEW not in caplog.text
        replace(tmp_path / "demanded", f"{OLD}\n{sent or OLD}".encode())
        if sent:
            await eventually(stack.door.is_ready)


async def test_a_token_changes_one_process_at_a_time_without_losing_a_connection(
    model_folder: Path, tmp_path: Path
) -> None:
    worker_file, front_file = tmp_path / "worker", tmp_path / "front"
    demanded, presented = token(worker_file, OLD), token(front_file, OLD)
    async with running_stack(
        model_folder,
        sim=FAST,
        worker_server={"access": demanded},
        connect=worker_connector(None, presented),
    ) as stack:
        for file, lines in (
            (worker_file, f"{OLD}\n{NEW}"),
            (front_file, NEW),
            (worker_file, NEW),
        ):
            replace(file, lines.encode())
            assert await answers(stack)
        worker = stack.workers[0]
        await worker.server.stop(0)
        await eventually(lambda: links(stack) == 0)
        port = int(worker.address.rpartition(":")[2])
        worker.server = grpc_server(worker.service.service, port=port, access=demanded)
        await worker.server.start()
        await eventually(lambda: links(stack) == 1)
        assert await answers(stack)


class Fleet:
    """A worker of authority `one` that lets in clients of `two`, whose files may change."""

    def __init__(self, folder: Path) -> None:
        self.one, self.two = Authority(folder, "one"), Authority(folder, "two")
        self.tls, _ = self.one.server(client_ca=self.two.file)
        self.client, self.files = self.two.client(trusting=self.one.file)

    def stack(self, folder: Path, client: ClientTls | None, **more: Any) -> Any:
        return running_stack(
            folder,
            sim=FAST,
            worker_server={"tls": self.tls.open()},
            connect=worker_connector(client, None),
            **more,
        )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


async def test_a_worker_with_mutual_tls_serves_its_front_door_and_no_stranger(
    model_folder: Path, fleet: Fleet
) -> None:
    async with fleet.stack(model_folder, fleet.client) as stack:
        assert await answers(stack)
        stranger, _ = fleet.one.client()
        assert await direct(stack, tls=stranger) is not None
        assert await direct(stack) is not None
        assert await direct(stack, tls=fleet.client) is None


@pytest.mark.parametrize(
    "changed",
    [lambda fleet: None, lambda fleet: ClientTls(ca=fleet.two.file), lambda fleet: fleet.stranger],
    ids=["no TLS", "another authority", "another client"],
)
async def test_a_front_door_that_does_not_fit_is_not_ready_and_says_why(
    model_folder: Path,
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
    changed: Callable[[Any], ClientTls | None],
) -> None:
    fleet.stranger = fleet.one.client()[0]  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="server"):
        async with fleet.stack(model_folder, changed(fleet), connected=False) as stack:
            await eventually(lambda: "no connection to worker worker-0: " in caplog.text)
            assert not stack.door.is_ready()


async def test_a_front_door_survives_a_broken_client_certificate_while_workers_come(
    model_folder: Path, fleet: Fleet
) -> None:
    connect = worker_connector(fleet.client, None)
    fleet.files.cert.write_bytes(b"half a certifi")
    async with running_stack(
        model_folder, sim=FAST, worker_server={"tls": fleet.tls.open()}, connect=connect
    ) as stack:
        assert await answers(stack)
