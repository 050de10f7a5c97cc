"""Models that come, change and go while a front door runs: what clients are told of them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from prometheus_client import REGISTRY

from router.settings import RouterSettings
from runtime.errors import ModelNotFound, ModelNotReady
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from tests.integration.gateway_client import serving
from tests.integration.kserve_client import ask, infer
from tests.integration.stack import SimWorker, Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.parameters import set_parameter
from wire.pool import KSERVE, rpc_types
from worker.card import make_card
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming

FAST = SimConfig(timing=SimTiming(speedup=0))
LONG_S = 3600.0
SHORT_S = 0.05
WAIT_S = 10.0


@dataclass
class Serving:
    """A front door that begins without workers, and both of its fronts."""

    stack: Stack
    channel: RpcChannel
    http: httpx2.AsyncClient
    folder: Path
    stopping: AsyncExitStack

    async def join(self, name: str, model: str, *aliases: str, **card: Any) -> SimWorker:
        """Register a worker; it need not be accepted."""
        engine = SimEngine(FAST)
        made = make_card(self.folder, model, engine.info, aliases)
        worker = SimWorker(name, msgspec.structs.replace(made, **card), engine)
        await worker.start(self.stack.discovery)
        self.stopping.push_async_callback(worker.stop)
        return worker

    async def serve(self, name: str, model: str, *aliases: str, **card: Any) -> SimWorker:
        """Register a worker and wait until requests can go to it."""
        worker = await self.join(name, model, *aliases, **card)
        await eventually(lambda: name in self.connected())
        return worker

    def connected(self) -> dict[str, str]:
        """The workers that can take requests, and the models that they serve."""
        return {
            worker["id"]: model["name"]
            for model in self.stack.door.describe()["models"]
            for worker in model["workers"]
            if worker["connected"]
        }

    async def listed(self) -> dict[str, Any]:
        answer = await self.http.get("/v1/models")
        return {entry["id"]: entry for entry in answer.json()["data"]}

    async def went_to(self, model: str) -> str:
        """The worker that answers a request for `model`."""
        request = ask(stream=False, model=model)
        set_parameter(request.parameters, "penstock_explain_route", True)
        answer = await infer(self.channel, request)
        worker: str = answer.parameters["penstock_worker"].string_param
        return worker

    async def is_ready(self, model: str) -> bool:
        request = pb.ModelReadyRequest(name=model)
        answer = await self.channel.unary(KSERVE, "ModelReady", request, timeout_s=WAIT_S)
        return bool(answer.ready)

    async def complete(self, model: str) -> httpx2.Response:
        body = {"model": model, "prompt": "Hello", "max_tokens": 2}
        return await self.http.post("/v1/completions", json=body)


@asynccontextmanager
async def front(folder: Path, **config: Any) -> AsyncIterator[Serving]:
    settings = FrontDoorConfig(**{"model_linger_s": LONG_S} | config)
    async with (
        AsyncExitStack() as stopping,
        running_stack(folder, workers=0, config=settings) as stack,
        serving(stack.door.backend, routing=stack.door.routing) as http,
    ):
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        stopping.push_async_callback(channel.close)
        yield Serving(stack, channel, http, folder, stopping)


async def test_models_are_found_by_name_and_alias_and_the_default_by_no_name(
    model_folder: Path,
) -> None:
    async with front(model_folder, routing=RouterSettings(policy="round-robin")) as it:
        for number in range(2):
            await it.serve(f"one-{number}", "one", "uno")
            await it.serve(f"two-{number}", "two", "dos", "zwei")
        assert {await it.went_to("one") for _ in range(4)} == {"one-0", "one-1"}
        assert {await it.went_to("zwei") for _ in range(4)} == {"two-0", "two-1"}
        for name in ("uno", ""):
            assert (await it.went_to(name)).startswith("one-")
        listed = await it.listed()
        assert list(listed) == ["one", "uno", "two", "dos", "zwei"]
        assert {name: entry["root"] for name, entry in listed.items()}["zwei"] == "two"
        assert all(entry["ready"] for entry in listed.values())
        assert await it.is_ready("dos")
        assert (await it.http.get("/v1/models/uno/ready")).status_code == 200


async def test_a_model_whose_last_worker_leaves_is_not_ready_but_not_unknown(
    model_folder: Path,
) -> None:
    async with front(model_folder) as it:
        first = await it.serve("one-0", "one", "uno")
        second = await it.serve("one-1", "one", "uno")
        await it.serve("two-0", "two")
        await first.leave()
        await eventually(lambda: "one-0" not in it.connected())
        assert await it.went_to("one") == "one-1"
        await second.leave()
        await eventually(lambda: "one-1" not in it.connected())
        listed = await it.listed()
        assert {name: entry["ready"] for name, entry in listed.items()} == {
            "one": False, "uno": False, "two": True,
        }  # fmt: skip
        assert not await it.is_ready("uno")
        for name in ("one", "uno"):
            told = await it.http.get(f"/v1/models/{name}/ready")
            assert (told.status_code, told.json()) == (503, {"id": name, "ready": False})
            assert (await it.complete(name)).status_code == 503
            with pytest.raises(ModelNotReady):
                await it.went_to(name)
        # It is the default still: whoever named no model meant this one.
        with pytest.raises(ModelNotReady, match="model 'one' has no ready worker"):
            await it.went_to("")
        await it.serve("one-2", "one")
        assert await it.went_to("") == "one-2"


async def test_a_model_without_workers_is_forgotten_and_the_next_one_is_the_default(
    model_folder: Path,
) -> None:
    async with front(model_folder, model_linger_s=SHORT_S) as it:
        one = await it.serve("one-0", "one", "uno")
        await it.serve("two-0", "two")
        await one.leave()
        await eventually(lambda: it.stack.door.model_names() == ["two"])
        assert list(await it.listed()) == ["two"]
        for name in ("one", "uno"):
            assert (await it.http.get(f"/v1/models/{name}/ready")).status_code == 404
            assert (await it.complete(name)).status_code == 404
            with pytest.raises(ModelNotFound):
                await it.went_to(name)
        assert await it.went_to("") == "two-0"
        for gauge in ("connected", "stalled"):
            assert REGISTRY.get_sample_value(f"penstock_workers_{gauge}", {"model": "one"}) is None
        # When it comes back it is one of the others.
        await it.serve("one-1", "one", "uno")
        assert await it.went_to("uno") == "one-1"
        assert await it.went_to("") == "two-0"


async def test_a_model_that_comes_back_in_time_is_not_forgotten(model_folder: Path) -> None:
    async with front(model_folder, model_linger_s=0.5) as it:
        one, two = await it.serve("one-0", "one"), await it.serve("two-0", "two")
        await one.leave()
        await eventually(lambda: "one-0" not in it.connected())
        await it.serve("one-1", "one")
        await two.leave()
        # Its time began later and is over: that of the other would be over too.
        await eventually(lambda: "two" not in it.stack.door.model_names())
        assert await it.went_to("one") == "one-1"


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if "is refused" in it.getMessage()]


async def test_a_worker_of_other_files_is_refused_once_until_the_others_have_left(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with front(model_folder) as it:
        old = [await it.serve(f"old-{number}", "one") for number in range(2)]
        await it.join("new-0", "one", checksum="0123456789abcdef", context_length=4000)
        await eventually(lambda: bool(refusals(caplog)))
        await old[0].leave()
        await eventually(lambda: "old-0" not in it.connected())
        assert await it.went_to("one") == "old-1"
        await old[1].leave()
        await eventually(lambda: it.connected() == {"new-0": "one"})
        assert await it.went_to("one") == "new-0"
        assert (await it.listed())["one"]["max_model_len"] == 4000
        (said,) = refusals(caplog)
        assert "worker new-0 is refused, it cannot serve one" in said
        assert "checksum 0123456789ab" in said
        assert all(it.levelno == logging.ERROR for it in caplog.records if it.getMessage() == said)


async def test_an_alias_of_another_model_is_refused_while_that_model_is_known(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with front(model_folder, model_linger_s=SHORT_S) as it:
        one = await it.serve("one-0", "one", "uno")
        await it.join("two-0", "two", "uno")
        await eventually(lambda: bool(refusals(caplog)))
        assert "'uno' is a name of model 'one' already" in refusals(caplog)[0]
        assert list(await it.listed()) == ["one", "uno"]
        await one.leave()
        await eventually(lambda: it.connected() == {"two-0": "two"})
        assert await it.went_to("uno") == "two-0"
        assert len(refusals(caplog)) == 1


async def test_thresholds_outlive_the_files_that_a_model_is_served_from(
    model_folder: Path,
) -> None:
    async with front(model_folder) as it:
        first = await it.serve("one-0", "one")
        body = {"model": "one", "active_prefill_tokens_threshold": 1000}
        told = (await it.http.post("/busy_threshold", json=body)).json()
        await first.leave()
        await it.serve("one-1", "one", checksum="other")
        assert (await it.http.post("/busy_threshold", json={"model": "one"})).json() == told


async def test_every_worker_must_be_able_to_take_a_request(model_folder: Path) -> None:
    async with front(model_folder) as it:
        await it.serve("one-0", "one", "uno", context_length=400)
        short = await it.serve("one-1", "one", "eins", context_length=100)
        assert {name: entry["max_model_len"] for name, entry in (await it.listed()).items()} == {
            "one": 100, "uno": 100, "eins": 100,
        }  # fmt: skip
        body = {"model": "one", "prompt": [5] * 200, "max_tokens": 2}
        answer = await it.http.post("/v1/completions", json=body)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        await short.leave()
        await eventually(lambda: "one-1" not in it.connected())
        assert (await it.http.post("/v1/completions", json=body)).status_code == 200
        assert list(await it.listed()) == ["one", "uno"]


async def test_a_worker_that_changes_its_model_as_it_is_forgotten_is_served(
    model_folder: Path,
) -> None:
    # The old model's time is over at once, while the text of the next is being loaded.
    async with front(model_folder, model_linger_s=0.0) as it:
        worker = await it.serve("one-0", "one", "uno", context_length=300)
        worker.card = msgspec.structs.replace(worker.card, checksum="other", context_length=200)
        assert worker.lease is not None
        await worker.lease.update(msgspec.json.encode(worker.instance()))

        def changed() -> bool:
            models = it.stack.door.describe()["models"]
            return [(m["context_length"], m["ready"]) for m in models] == [(200, True)]

        await eventually(changed)
        assert await it.went_to("uno") == "one-0"


async def test_the_places_of_a_model_are_those_of_the_workers_it_has_now(
    model_folder: Path,
) -> None:
    config = {"model_linger_s": SHORT_S, "worker_concurrency": 2}
    async with front(model_folder, **config) as it:
        first = await it.serve("one-0", "one")
        assert await it.went_to("one") == "one-0"
        await first.leave()
        await eventually(lambda: not it.stack.door.model_names())
        await it.serve("one-1", "one", checksum="other")
        async with asyncio.timeout(WAIT_S):
            answers = await asyncio.gather(*[it.complete("one") for _ in range(2)])
        assert [answer.status_code for answer in answers] == [200, 200]
