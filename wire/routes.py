"""Where a request goes, told to who asks."""

import msgspec

from wire import penstock_pb2 as pb


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The place that was chosen. `cost` is in KV blocks, the lower the better.

    Of `prompt_blocks` full blocks of the prompt, the router believed `overlap_blocks` to be in the
    worker's KV cache.
    """

    worker_id: str
    data_parallel_rank: int = 0
    overlap_blocks: int = 0
    prompt_blocks: int = 0
    cost: float = 0.0


class RouteCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A place as it is judged; `busy` is above a threshold.

    `active_blocks` and `prefill_tokens` are its load without this request.
    """

    worker_id: str
    data_parallel_rank: int = 0
    overlap_blocks: int = 0
    cost: float = 0.0
    active_blocks: int = 0
    prefill_tokens: int = 0
    busy: bool = False


class RouteReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a router would do with a request; `candidates` best first, all that may take it."""

    model: str
    worker_id: str
    address: str
    data_parallel_rank: int
    overlap_blocks: int
    prompt_blocks: int
    candidates: list[RouteCandidate]


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Above any of these a worker's rank is busy and passed over; None is no threshold.

    `active_decode_blocks` is a part of its KV blocks in [0, 1], `active_prefill_tokens` counts
    prompt tokens that it has yet to compute.
    """

    active_decode_blocks: float | None = None
    active_prefill_tokens: int | None = None


def best_worker_response(report: RouteReport) -> pb.BestWorkerResponse:
    """Write a report as the answer of BestWorker."""
    return pb.BestWorkerResponse(
        worker_id=report.worker_id,
        data_parallel_rank=report.data_parallel_rank,
        address=report.address,
        overlap_blocks=report.overlap_blocks,
        prompt_blocks=report.prompt_blocks,
        # Both have the same fields.
        candidates=[pb.RouteCandidate(**msgspec.structs.asdict(it)) for it in report.candidates],
    )
