"""What a worker says about itself and its model in discovery."""

import msgspec

from wire.pooling import GENERATE

INSTANCE_KIND = "instances"
ROUTER_KIND = "routers"
READY = "ready"
UNLOADING = "unloading"
UNLOADED = "unloaded"


def instance_kind(namespace: str) -> str:
    """The kind of the instances of one namespace: its processes see no others."""
    return INSTANCE_KIND if namespace == "default" else f"{INSTANCE_KIND}.{namespace}"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. `path` is the HF folder with tokenizer.json, config and chat template.

    `context_length` is in tokens (prompt plus answer), `block_size` in tokens per KV block,
    `created` in seconds since the Unix epoch. `eos_token_ids` end a choice unless ignored. `task`
    is what it is served for: GENERATE or EMBED (wire/pooling.py). `adapters` are the names of its
    LoRA adapters. `tool_call_parser` and `reasoning_parser` are names of server/parsers/: "auto" is
    what its chat template shows, "none" is none.
    """

    name: str
    path: str
    context_length: int
    vocab_size: int
    block_size: int
    aliases: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    created: int = 0
    checksum: str = ""
    task: str = GENERATE
    adapters: tuple[str, ...] = ()
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may ask for it by; an adapter's name asks for that, too."""
        return (self.name, *self.aliases, *self.adapters)


class WorkerInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process. `address` is host:port of its gRPC service; `kv_blocks` its capacity.

    It runs `max_num_seqs` sequences at once in each data-parallel rank (0: unknown); `kv_events`
    is whether WatchKvEvents tells what its prefix cache holds. `state` is READY, or UNLOADING while
    it takes no more requests and has running ones, then UNLOADED until it is loaded again.
    """

    instance_id: str
    address: str
    card: ModelCard
    engine: str
    kv_blocks: int = 0
    data_parallel_size: int = 1
    max_num_seqs: int = 0
    kv_events: bool = False
    status_url: str = ""
    version: str = ""
    state: str = READY


class RouterInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One router process, for its peers. `address` is host:port of its gRPC service."""

    model: str
    address: str
