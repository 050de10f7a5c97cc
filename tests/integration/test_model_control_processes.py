"""Load, unload, settings and statistics of real processes: several front doors, two workers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.integration.test_cli import FREE, SIM, Running, get, penstock
from tests.waiting import wait_until

MODEL = "smollm2"
# By default the clients of one process share a connection, so that all would ask one front door.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
# That ten connections all go to the same of two front doors has odds of 1 to 512.
CONNECTIONS = 10


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    flags = (*SIM, *FREE, "--workers=2", "--processes=2", "--model-control=explicit")
    with penstock(tmp_path_factory.mktemp("group"), "serve", MODEL, *flags) as one:
        yield one


@contextmanager
def client_of(one: Running) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(one.ready["grpc"], channel_args=OWN_CONNECTION)
    try:
        yield client
    finally:
        client.close()


def from_each(one: Running, ask: Callable[[triton.InferenceServerClient], Any]) -> list[Any]:
    """What the front doors say, each on a connection of its own."""
    found = []
    for _ in range(CONNECTIONS):
        with client_of(one) as client:
            found.append(ask(client))
    return found


def infer(client: triton.InferenceServerClient) -> Any:
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array(["hi"], dtype=object))
    return client.infer(MODEL, [text], client_timeout=10)


def workers(one: Running) -> list[dict[str, Any]]:
    (model,) = json.loads(get(f"{one.ready['metrics']}/health")[1])["models"]
    found: list[dict[str, Any]] = model["workers"]
    return found


def test_a_model_unloaded_at_one_front_door_is_unloaded_at_all(group: Running) -> None:
    with client_of(group) as client:
        client.unload_model(MODEL)
        wait_until(
            lambda: not any(from_each(group, lambda it: it.is_model_ready(MODEL))), limit_s=10
        )
        (model,) = client.get_model_repository_index().models
        assert (model.state, model.reason) == ("UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException, match="unloaded"):
            infer(client)
        assert {it["state"] for it in workers(group)} == {"unloaded"}
        for it in workers(group):
            assert get(f"{it['status_url']}/ready")[0] == 503
            assert get(f"{it['status_url']}/live")[0] == 200
        client.load_model(MODEL)
        infer(client)
        wait_until(lambda: all(from_each(group, lambda it: it.is_model_ready(MODEL))), limit_s=10)
        assert {it["state"] for it in workers(group)} == {"ready"}


def test_statistics_are_of_all_front_doors_together(group: Running) -> None:
    def counted(client: triton.InferenceServerClient) -> int:
        (stats,) = client.get_inference_statistics(MODEL).model_stats
        return int(stats.inference_count)

    # Others than the one that is asked tell what they have counted twice a second.
    wait_until(lambda: len(set(from_each(group, counted))) == 1, limit_s=10)
    before = from_each(group, counted)[0]
    from_each(group, infer)
    wait_until(lambda: set(from_each(group, counted)) == {before + CONNECTIONS}, limit_s=10)


def test_settings_hold_for_all_front_doors(group: Running) -> None:
    def verbose(client: triton.InferenceServerClient) -> int:
        return int(client.get_log_settings().settings["log_verbose_level"].uint32_param)

    def rate(client: triton.InferenceServerClient) -> str:
        return str(client.get_trace_settings(MODEL).settings["trace_rate"].value[0])

    with client_of(group) as client:
        client.update_log_settings({"log_verbose_level": 2})
        client.update_trace_settings(MODEL, {"trace_rate": "7"})
    wait_until(lambda: set(from_each(group, verbose)) == {2}, limit_s=10)
    wait_until(lambda: set(from_each(group, rate)) == {"7"}, limit_s=10)


def test_a_router_in_between_is_unloaded_in_the_place_of_its_workers(tmp_path: Path) -> None:
    flags = (f"--discovery-path={tmp_path}/discovery",)
    worker = ("worker", MODEL, *SIM, FREE[0], FREE[2], "--namespace=pool", *flags)
    between = ("router", FREE[0], FREE[2], "--namespace=pool", "--register-namespace=front", *flags)
    front = ("frontend", *FREE, "--namespace=front", "--expect-model", MODEL, *flags)
    with (
        penstock(tmp_path, *worker) as engine,
        penstock(tmp_path, *between) as router,
        penstock(tmp_path, *front, "--model-control=explicit") as one,
        client_of(one) as client,
    ):
        client.unload_model(MODEL)
        assert not client.is_model_ready(MODEL)
        assert get(f"{router.ready['metrics']}/ready")[0] == 503
        assert get(f"{engine.ready['metrics']}/ready")[0] == 200
        client.load_model(MODEL)
        infer(client)
