"""Tells what another etcd client, the package etcd3, sees: `python etcd3_witness.py PORT PREFIX`.

Prints one JSON line for the records there are, then one for each event.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass


def import_etcd3() -> Any:
    """Import etcd3, whose generated code of 2019 protobuf refuses, with classes made from it."""
    package = importlib.util.find_spec("etcd3")
    assert package is not None
    assert package.origin is not None
    pool = DescriptorPool()
    for name in ("kv", "auth", "rpc"):
        generated = Path(package.origin).parent / "etcdrpc" / f"{name}_pb2.py"
        for node in ast.walk(ast.parse(generated.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
                assert isinstance(node.value, ast.Call)
                pool.AddSerializedFile(ast.literal_eval(node.value.args[0]).encode("latin-1"))
    module = ModuleType("etcd3.etcdrpc.rpc_pb2")
    for name, message in pool.FindFileByName("rpc.proto").message_types_by_name.items():
        setattr(module, name, GetMessageClass(message))
    sys.modules[module.__name__] = module
    import etcd3

    return etcd3


def main(port: str, prefix: str) -> None:
    with import_etcd3().client(port=int(port), timeout=10) as client:
        events, _ = client.watch_prefix(prefix)
        found = {about.key.decode(): value.decode() for value, about in client.get_prefix(prefix)}
        print(json.dumps(found), flush=True)
        for event in events:
            told = [type(event).__name__, event.key.decode(), event.value.decode()]
            print(json.dumps(told), flush=True)


main(*sys.argv[1:])
