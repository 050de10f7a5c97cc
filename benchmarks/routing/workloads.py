"""What clients send: conversations and single requests, each with its time of arrival. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

# Ordinary tokens of the model that the simulator takes its vocabulary from.
_TOKENS = (1000, 40_000)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A first prompt and what the user adds after each answer; answers have `answer` tokens."""

    due_s: float
    turns: tuple[tuple[int, ...], ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Conversations in the order of their arrival."""

    name: str
    conversations: tuple[Conversation, ...]


def multi_turn(
    seconds: float, rng: Random, *, rate: float = 2.0, first: int = 2000, added: int = 200,
    answer: int = 96, turns: int = 8,
) -> Workload:  # fmt: skip
    """Conversations that arrive at random: a first prompt, then turns that each add to it."""
    lengths = [first] + [added] * (turns - 1)
    return _workload(
        "multi_turn", seconds, rate, rng, lambda: [_tokens(n, rng) for n in lengths], answer
    )


def shared_prefix(
    seconds: float, rng: Random, *, rate: float = 16.0, prefixes: int = 128, prefix: int = 3500,
    own: int = 500, answer: int = 64,
) -> Workload:  # fmt: skip
    """Single requests, each one of `prefixes` known beginnings and an end of its own.

    All beginnings together are more than one worker's cache holds and fewer than all caches do.
    """
    known = [_tokens(prefix, rng) for _ in range(prefixes)]
    return _workload(
        "shared_prefix", seconds, rate, rng, lambda: [rng.choice(known) + _tokens(own, rng)], answer
    )


def no_shared_prefix(
    seconds: float, rng: Random, *, rate: float = 16.0, prompt: int = 1000, answer: int = 64
) -> Workload:
    """Single requests that have nothing in common: here routing by caches can only do harm."""
    return _workload("no_shared_prefix", seconds, rate, rng, lambda: [_tokens(prompt, rng)], answer)


def _workload(
    name: str,
    seconds: float,
    rate: float,
    rng: Random,
    turns: Callable[[], list[tuple[int, ...]]],
    answer: int,
) -> Workload:
    due_s, conversations = 0.0, []
    while (due_s := due_s + rng.expovariate(rate)) < seconds:
        conversations.append(Conversation(due_s=due_s, turns=tuple(turns()), answer=answer))
    return Workload(name=name, conversations=tuple(conversations))


def _tokens(count: int, rng: Random) -> tuple[int, ...]:
    return tuple(rng.choices(range(*_TOKENS), k=count))
