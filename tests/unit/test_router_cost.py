"""The cost function and the draw by it."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from router.cost import cheapest, drawn, load_costs


def test_prompts_to_compute_cost_by_their_weight_and_blocks_in_use_as_they_are() -> None:
    found = load_costs(
        prefill_tokens=np.array([160, 0]), active_blocks=np.array([1.0, 20.0]), per_token=2 / 16
    )
    assert found.tolist() == [21, 20]


def test_all_of_the_cheapest_are_found() -> None:
    assert cheapest(np.array([3.0, 1.0, 2.0, 1.0])).tolist() == [1, 3]


def shares(cost: list[float], temperature: float, draws: int = 4000) -> list[float]:
    rng = random.Random(5)
    seen = Counter(drawn(np.array(cost), temperature, rng) for _ in range(draws))
    return [seen[at] / draws for at in range(len(cost))]


def test_places_are_drawn_as_the_softmax_says() -> None:
    cost, temperature = [10.0, 20.0, 30.0], 0.7
    weights = [math.exp(-c / temperature) for c in (0.0, 0.5, 1.0)]
    expected = [weight / sum(weights) for weight in weights]
    assert shares(cost, temperature) == pytest.approx(expected, abs=0.03)


def test_a_temperature_means_the_same_at_any_load() -> None:
    assert shares([1.0, 2.0, 3.0], 0.7) == shares([1000.0, 2000.0, 3000.0], 0.7)


def test_equal_costs_are_drawn_alike() -> None:
    assert shares([7.0, 7.0, 7.0], 0.5) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_low_temperature_is_the_cheapest_without_overflow() -> None:
    assert shares([5.0, 1.0, 9.0], 1e-300, 50) == [0, 1, 0]
