"""Which configuration each command has, imported when it is asked for."""

from collections.abc import Iterator
from pkgutil import resolve_name

CONFIG_CLASSES = {
    "serve": "cli.serve:ServeConfig",
    "frontend": "cli.frontend:FrontendConfig",
    "worker": "worker.config:WorkerConfig",
    "router": "cli.router:RouterConfig",
    "gateway": "cli.gateway:GatewayProcessConfig",
    "chat": "cli.chat:ChatConfig",
    "status": "cli.status:StatusConfig",
    "bench": "cli.bench:BenchConfig",
}
# Those of bootstrap.py.
SETUP_VARIABLES = ("PENSTOCK_BUILD", "PENSTOCK_TORCH_INDEX")


def config_classes(first: str) -> Iterator[type]:
    """Yield the configuration of the command `first`, then those of the others."""
    for command in sorted(CONFIG_CLASSES, key=lambda name: name != first):
        yield resolve_name(CONFIG_CLASSES[command])
