"""The gateway's own description: complete, and true of every answer that schemathesis gets."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway_http.app import create_app
from gateway_http.config import GatewayConfig
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import serving

RUN_S = 120
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance",
)  # fmt: skip


@pytest.mark.timeout(RUN_S + 20)
async def test_no_request_meets_a_500_or_an_answer_that_is_not_described(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), GatewayConfig(keep_alive_s=0)) as http:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run",
            f"{str(http.base_url).rstrip('/')}/openapi.json", "--max-examples=12", "--seed=1",
            "--phases=examples,fuzzing", "--no-color", f"--checks={','.join(CHECKS)}",
            # What is not ready says so with 503, by design.
            "--exclude-path-regex=/ready$",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(RUN_S):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, out.decode()[-6000:]


@pytest.fixture
def document() -> dict[str, Any]:
    return create_app(ScriptedBackend(), GatewayConfig()).openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, found in document["paths"].items()
        for method, operation in found.items()
    ]


def test_every_operation_tells_its_errors_and_none_that_never_comes(
    document: dict[str, Any],
) -> None:
    for path, _, operation in operations(document):
        assert {"400", "401", "404", "405", "429", "500", "503", "504"} <= set(
            operation["responses"]
        ), path
        assert "422" not in operation["responses"], path


def test_every_body_has_a_schema_and_an_example(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bodies = 0
    for path, _, operation in operations(document):
        if "requestBody" not in operation:
            continue
        bodies += 1
        media = operation["requestBody"]["content"]["application/json"]
        name = media["schema"]["$ref"].rpartition("/")[2]
        assert schemas[name]["properties"], path
        assert media["example"], path
        headers = {it["name"] for it in operation["parameters"] if it["in"] == "header"}
        assert "x-request-timeout" in headers, path
    assert bodies > 15


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(value["$ref"])
            for it in value.values():
                walk(it)
        elif isinstance(value, list):
            for it in value:
                walk(it)

    walk(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert found
    assert set(found) <= known
