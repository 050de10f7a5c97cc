import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KV_STORED: _ClassVar[KvEventKind]
    KV_REMOVED: _ClassVar[KvEventKind]
    KV_CLEARED: _ClassVar[KvEventKind]

class ControlAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTROL_NONE: _ClassVar[ControlAction]
    CONTROL_LOAD: _ClassVar[ControlAction]
    CONTROL_UNLOAD: _ClassVar[ControlAction]
KV_STORED: KvEventKind
KV_REMOVED: KvEventKind
KV_CLEARED: KvEventKind
CONTROL_NONE: ControlAction
CONTROL_LOAD: ControlAction
CONTROL_UNLOAD: ControlAction

class WatchKvEventsRequest(_message.Message):
    __slots__ = ("since",)
    SINCE_FIELD_NUMBER: _ClassVar[int]
    since: _containers.RepeatedCompositeFieldContainer[KvPosition]
    def __init__(self, since: _Optional[_Iterable[_Union[KvPosition, _Mapping]]] = ...) -> None: ...

class KvPosition(_message.Message):
    __slots__ = ("data_parallel_rank", "log_id", "event_id")
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    data_parallel_rank: int
    log_id: int
    event_id: int
    def __init__(self, data_parallel_rank: _Optional[int] = ..., log_id: _Optional[int] = ..., event_id: _Optional[int] = ...) -> None: ...

class KvEventBatch(_message.Message):
    __slots__ = ("data_parallel_rank", "log_id", "first_id", "happened_s", "kinds", "counts", "hashes", "parents", "labels", "snapshot")
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_ID_FIELD_NUMBER: _ClassVar[int]
    HAPPENED_S_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    data_parallel_rank: int
    log_id: int
    first_id: int
    happened_s: float
    kinds: bytes
    counts: _containers.RepeatedScalarFieldContainer[int]
    hashes: bytes
    parents: bytes
    labels: _containers.RepeatedCompositeFieldContainer[KvLabel]
    snapshot: KvSnapshot
    def __init__(self, data_parallel_rank: _Optional[int] = ..., log_id: _Optional[int] = ..., first_id: _Optional[int] = ..., happened_s: _Optional[float] = ..., kinds: _Optional[bytes] = ..., counts: _Optional[_Iterable[int]] = ..., hashes: _Optional[bytes] = ..., parents: _Optional[bytes] = ..., labels: _Optional[_Iterable[_Union[KvLabel, _Mapping]]] = ..., snapshot: _Optional[_Union[KvSnapshot, _Mapping]] = ...) -> None: ...

class KvLabel(_message.Message):
    __slots__ = ("event", "lora_name", "medium")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    LORA_NAME_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    event: int
    lora_name: str
    medium: str
    def __init__(self, event: _Optional[int] = ..., lora_name: _Optional[str] = ..., medium: _Optional[str] = ...) -> None: ...

class KvSnapshot(_message.Message):
    __slots__ = ("hashes", "first", "last")
    HASHES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    hashes: bytes
    first: bool
    last: bool
    def __init__(self, hashes: _Optional[bytes] = ..., first: _Optional[bool] = ..., last: _Optional[bool] = ...) -> None: ...

class WatchLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("ranks", "draining", "steps", "stalled")
    RANKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[RankLoad]
    draining: bool
    steps: int
    stalled: bool
    def __init__(self, ranks: _Optional[_Iterable[_Union[RankLoad, _Mapping]]] = ..., draining: _Optional[bool] = ..., steps: _Optional[int] = ..., stalled: _Optional[bool] = ...) -> None: ...

class RankLoad(_message.Message):
    __slots__ = ("data_parallel_rank", "running", "waiting", "kv_usage", "cache_queried_tokens", "cache_hit_tokens")
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    CACHE_QUERIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    data_parallel_rank: int
    running: int
    waiting: int
    kv_usage: float
    cache_queried_tokens: int
    cache_hit_tokens: int
    def __init__(self, data_parallel_rank: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_usage: _Optional[float] = ..., cache_queried_tokens: _Optional[int] = ..., cache_hit_tokens: _Optional[int] = ...) -> None: ...

class BestWorkerRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _inference_pb2.ModelInferRequest
    def __init__(self, request: _Optional[_Union[_inference_pb2.ModelInferRequest, _Mapping]] = ...) -> None: ...

class BestWorkerResponse(_message.Message):
    __slots__ = ("worker_id", "data_parallel_rank", "address", "overlap_blocks", "prompt_blocks", "candidates")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    data_parallel_rank: int
    address: str
    overlap_blocks: int
    prompt_blocks: int
    candidates: _containers.RepeatedCompositeFieldContainer[RouteCandidate]
    def __init__(self, worker_id: _Optional[str] = ..., data_parallel_rank: _Optional[int] = ..., address: _Optional[str] = ..., overlap_blocks: _Optional[int] = ..., prompt_blocks: _Optional[int] = ..., candidates: _Optional[_Iterable[_Union[RouteCandidate, _Mapping]]] = ...) -> None: ...

class RouteCandidate(_message.Message):
    __slots__ = ("worker_id", "data_parallel_rank", "overlap_blocks", "cost", "active_blocks", "prefill_tokens", "busy")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    data_parallel_rank: int
    overlap_blocks: int
    cost: float
    active_blocks: int
    prefill_tokens: int
    busy: bool
    def __init__(self, worker_id: _Optional[str] = ..., data_parallel_rank: _Optional[int] = ..., overlap_blocks: _Optional[int] = ..., cost: _Optional[float] = ..., active_blocks: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., busy: _Optional[bool] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("action",)
    ACTION_FIELD_NUMBER: _ClassVar[int]
    action: ControlAction
    def __init__(self, action: _Optional[_Union[ControlAction, str]] = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class WatchActiveLoadRequest(_message.Message):
    __slots__ = ("model_name",)
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    def __init__(self, model_name: _Optional[str] = ...) -> None: ...

class ActiveLoad(_message.Message):
    __slots__ = ("ranks",)
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[ActiveRank]
    def __init__(self, ranks: _Optional[_Iterable[_Union[ActiveRank, _Mapping]]] = ...) -> None: ...

class ActiveRank(_message.Message):
    __slots__ = ("worker_id", "data_parallel_rank", "active_blocks", "prefill_tokens", "requests")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    data_parallel_rank: int
    active_blocks: int
    prefill_tokens: int
    requests: int
    def __init__(self, worker_id: _Optional[str] = ..., data_parallel_rank: _Optional[int] = ..., active_blocks: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., requests: _Optional[int] = ...) -> None: ...
