"""The options of security as operators use them: real processes over the simulated engine."""

import asyncio
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from runtime.errors import ServingError, Unauthenticated
from runtime.grpc_client import RpcChannel
from tests.certificates import Authority, replace
from tests.integration.test_cli import FREE, PENSTOCK, SIM, Running, fails, penstock
from tests.waiting import wait_until
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types

KEY, OTHER_KEY = "sk-key-of-the-variable-0001", "sk-key-of-the-gateway-0002"
TOKEN = "token-of-this-fleet-0003"
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def client(url: str, key: str | None = None, verify: ssl.SSLContext | bool = True) -> httpx2.Client:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=url, headers=headers, verify=verify, timeout=20, trust_env=False)


def chat_status(url: str, key: str | None = None, verify: ssl.SSLContext | bool = True) -> int:
    with client(url, key, verify) as http:
        return http.post("/v1/chat/completions", json=CHAT).status_code


def listens_on_loopback_only(process: psutil.Process) -> bool:
    found = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert found
    return all(c.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1") for c in found)


@pytest.mark.parametrize(
    ("args", "environment", "named"),
    [
        (("frontend", "--tls-cert=x.pem"), {}, "--tls-cert needs --tls-key"),
        (("frontend",), {"PENSTOCK_TLS_KEY": "x"}, "environment variable PENSTOCK_TLS_KEY"),
        (("frontend", "--worker-tls-key=x"), {}, "--worker-tls-key needs --worker-tls-cert"),
        (("frontend", "--tls-cert=x.pem", "--tls-key=y", *FREE), {}, "--tls-cert x.pem: No such"),
        (("frontend", "--worker-tls-ca=x.pem", *FREE), {}, "--worker-tls-ca x.pem: No such"),
        (("frontend", "--api-keys-file=x.yaml", *FREE), {}, "--api-keys-file x.yaml: No such"),
        (("frontend", "--api-key=sk-secret"), {}, "PENSTOCK_API_KEY"),
        (("frontend", *FREE), {"PENSTOCK_API_KEY": "sk secret"}, "PENSTOCK_API_KEY"),
        (("frontend", *FREE), {"PENSTOCK_FLEET_TOKEN": "secret"}, "--fleet-token-file"),
        (("gateway", "--target=x:1", "--target-tls-cert=x"), {}, "--target-tls-key"),
        (("gateway", "--target=x:1", "--target-tls-ca=x.pem", *FREE[1:]), {}, "--target-tls-ca x"),
        (("worker", "smollm2", *SIM, "--fleet-token-file=x", "--metrics-port=0", "--grpc-port=0"),
         {}, "--fleet-token-file x: No such"),
        (("worker", "smollm2", "--fleet-token=secret"), {}, "PENSTOCK_FLEET_TOKEN"),
        (("serve", "smollm2", *SIM, *FREE, "--tls-cert=x.pem", "--tls-key=y"), {}, "x.pem: No"),
        (("serve", "smollm2", *SIM, *FREE, "--api-keys-file=x.yaml"), {}, "x.yaml: No such"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_credential_is_said_at_start(
    args: tuple[str, ...], environment: dict[str, str], named: str
) -> None:
    code, said = fails(*args, **environment)
    assert code == 2
    assert named in said
    assert "secret" not in said.replace("a secret is not for", "")
    assert len(said.splitlines()) == 1


def test_print_config_shows_that_there_are_secrets_and_not_which() -> None:
    for command in (("serve", "smollm2"), ("frontend",), ("worker", "smollm2")):
        shown = subprocess.run(
            [*PENSTOCK, *command, "--print-config"],
            capture_output=True,
            check=True,
            timeout=40,
            env={"PENSTOCK_API_KEY": KEY, "PENSTOCK_FLEET_TOKEN": TOKEN, **_path()},
        ).stdout.decode()
        assert "fleet-token: '***'  # environment variable PENSTOCK_FLEET_TOKEN" in shown
        assert ("api-key: '***'  # environment variable PENSTOCK_API_KEY" in shown) == (
            command[0] != "worker"
        )
        assert KEY not in shown
        assert TOKEN not in shown


def _path() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}


def ask_worker(address: str) -> ServingError | None:
    async def ask() -> ServingError | None:
        channel = RpcChannel(address, rpc_types=rpc_types)
        try:
            await channel.unary(KSERVE, "ServerLive", pb.ServerLiveRequest(), timeout_s=10)
        except ServingError as error:
            return error
        finally:
            await channel.close()
        return None

    return asyncio.run(ask())


def test_serve_opens_its_front_door_only(tmp_path: Path) -> None:
    flags = (*SIM, *FREE, "--host=0.0.0.0", "--metrics-host=127.0.0.1")
    with penstock(tmp_path, "serve", "smollm2", *flags, PENSTOCK_API_KEY=KEY) as one:
        inside = {
            name: listens_on_loopback_only(process)
            for process in one.family()
            for name in ("frontend", "worker")
            if name in process.cmdline()
        }
        assert inside == {"frontend": False, "worker": True}
        assert one.ready["metrics"].startswith("http://127.0.0.1:")
        url = one.ready["http"].replace("0.0.0.0", "127.0.0.1")
        assert (chat_status(url, KEY), chat_status(url)) == (200, 401)
        said = one.log.read_text()
        found = re.search(r"ready: smollm2 on (127\.0\.0\.1:\d+)", said)
        assert found
        assert isinstance(ask_worker(found[1]), Unauthenticated)
        assert "clients need  an API key" in said
        assert "curl:" not in said
        assert not any(KEY in " ".join(it.cmdline()) for it in one.family())
        assert KEY not in said


def test_a_worker_listens_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    flags = (*SIM, FREE[0], FREE[2], f"--discovery-path={tmp_path}/d")
    with penstock(tmp_path, "worker", "smollm2", *flags) as worker:
        assert listens_on_loopback_only(psutil.Process(worker.process.pid))


def metrics_of(one: Running) -> str:
    with client(one.ready["metrics"]) as http:
        return "".join(http.get(path).text for path in ("/metrics", "/health"))


def test_a_fleet_with_tls_keys_and_a_token_on_every_hop_tells_no_secret(tmp_path: Path) -> None:
    authority, fleet = Authority(tmp_path, "public"), Authority(tmp_path, "fleet")
    public = authority.identity("server")
    worker_files, door_files = fleet.identity("worker"), fleet.identity("door", "door@fleet")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    tls = (f"--tls-cert={public.cert}", f"--tls-key={public.key}", "--log-level=debug")
    shared = (f"--discovery-path={tmp_path}/d", f"--fleet-token-file={token}")
    worker_tls = (
        f"--tls-cert={worker_files.cert}", f"--tls-key={worker_files.key}",
        f"--tls-client-ca={fleet.file}", "--log-level=debug",
    )  # fmt: skip
    to_worker = (
        f"--worker-tls-ca={fleet.file}", f"--worker-tls-cert={door_files.cert}",
        f"--worker-tls-key={door_files.key}",
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=str(authority.file))
    with (
        penstock(tmp_path, "worker", "smollm2", *SIM, FREE[0], FREE[2], *shared, *worker_tls) as w,
        penstock(
            tmp_path, "frontend", *FREE, *shared, *tls, *to_worker, PENSTOCK_API_KEY=KEY
        ) as front,
        penstock(
            tmp_path, "gateway", *FREE[1:], *tls, f"--target={front.ready['grpc']}",
            f"--target-tls-ca={authority.file}",
        ) as gateway,
    ):  # fmt: skip
        urls = [front.ready["http"], gateway.ready["http"]]
        assert all(url.startswith("https://127.0.0.1:") for url in urls)
        with client(front.ready["metrics"]) as http:  # the status port stays plain
            wait_until(lambda: http.get("/ready").status_code == 200, limit_s=20)
        for url in urls:
            statuses = [chat_status(url, key, trust) for key in (KEY, OTHER_KEY, None)]
            assert statuses == [200, 401, 401]
            with client(url, verify=trust) as http:
                assert http.get("/ready").status_code == 200
        assert ask_worker(w.ready["grpc"]) is not None

        public.renew(fleet)
        trust_new = ssl.create_default_context(cafile=str(fleet.file))
        for url in urls:
            assert chat_status(url, KEY, trust_new) == 200

        told = [one.log.read_text() + metrics_of(one) for one in (w, front, gateway)]
        told += [" ".join(psutil.Process(one.process.pid).cmdline()) for one in (w, front, gateway)]
    for text in told:
        assert not any(secret in text for secret in (KEY, OTHER_KEY, TOKEN, "PRIVATE KEY"))


@pytest.fixture
def keyed_front(tmp_path: Path) -> Any:
    discovery = f"--discovery-path={tmp_path}/d"
    with (
        penstock(tmp_path, "worker", "smollm2", *SIM, FREE[0], FREE[2], discovery),
        penstock(tmp_path, "frontend", *FREE, discovery, PENSTOCK_API_KEY=KEY) as front,
    ):
        with client(front.ready["metrics"]) as http:
            wait_until(lambda: http.get("/ready").status_code == 200, limit_s=20)
        yield front


def test_a_gateway_may_have_a_key_of_its_own_and_hides_it_when_it_is_wrong(
    tmp_path: Path, keyed_front: Running
) -> None:
    own = tmp_path / "own-key"
    own.write_text(f"{KEY}\n")
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"[{{name: ann, key: {OTHER_KEY}}}]")
    flags = (
        *FREE[1:], f"--target={keyed_front.ready['grpc']}", f"--target-api-key-file={own}",
        f"--api-keys-file={keys}",
    )  # fmt: skip
    with penstock(tmp_path, "gateway", *flags) as gateway:
        url = gateway.ready["http"]
        assert [chat_status(url, key) for key in (OTHER_KEY, KEY, None)] == [200, 401, 401]
        replace(own, b"a-key-that-the-target-does-not-know")
        assert chat_status(url, OTHER_KEY) == 500
        with client(url) as http:
            assert http.get("/ready").status_code == 503
        said = gateway.log.read_text()
        assert "the target refuses this gateway's key" in said
        assert not any(secret in said for secret in (KEY, OTHER_KEY, "does-not-know"))
