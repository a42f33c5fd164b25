"""How many items to take at a time: exact traces of the rules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from millstream import AdaptiveBatchPolicy, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


def sizes(policy: AdaptiveBatchPolicy, batches: int, answered: Callable[[int], int]) -> list[int]:
    """The sizes of so many batches, each of which went as `answered` says."""
    trace = []
    for _ in range(batches):
        size = policy.batch_size
        trace.append(size)
        assert policy.record(size, 0.5, answered(size), size - answered(size)) == policy.batch_size
    return trace


def all_of(size: int) -> int:
    return size


def none_of(size: int) -> int:
    return 0


def test_grows_to_the_cap_and_not_past_it() -> None:
    assert sizes(AdaptiveBatchPolicy(), 12, all_of) == [10, 10, 10, 13, 16, 20, 26, 33, 42, 50, 50, 50]


def test_shrinks_to_one_and_does_not_stay_there() -> None:
    policy = AdaptiveBatchPolicy("classic")
    assert sizes(policy, 8, none_of) == [10, 10, 10, 7, 4, 2, 1, 1]
    assert sizes(policy, 10, all_of) == [1, 1, 1, 2, 3, 4, 5, 6, 7, 9]


@pytest.mark.parametrize("share", [0.90, 0.95, 0.97])
def test_leaves_the_size_alone_between_ninety_and_ninety_eight_percent(share: float) -> None:
    policy = AdaptiveBatchPolicy(initial_batch_size=100, max_batch_size=1000)
    assert sizes(policy, 6, lambda size: round(size * share)) == [100] * 6


def test_the_additive_rule_adds_a_tenth_of_the_cap_and_halves() -> None:
    policy = AdaptiveBatchPolicy("aimd")
    assert sizes(policy, 10, all_of) == [10, 15, 20, 25, 30, 35, 40, 45, 50, 50]
    assert sizes(policy, 7, none_of) == [50, 25, 12, 6, 3, 1, 1]


def test_keeps_how_each_batch_went() -> None:
    policy = AdaptiveBatchPolicy()
    policy.record(10, 2.0, 8, 2)
    policy.record(4, 0.0, 4, 0)
    assert policy.metrics == [
        {"batch_size": 10, "duration": 2.0, "success_rate": 0.8, "items_per_second": 5.0},
        {"batch_size": 4, "duration": 0.0, "success_rate": 1.0, "items_per_second": math.inf},
    ]
    assert repr(policy) == "AdaptiveBatchPolicy('classic', batch_size=10, batches=2)"


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="classic"):
        AdaptiveBatchPolicy("other")  # type: ignore[arg-type]
    for initial, most in [(0, 50), (-1, 50), (51, 50), (1, 0)]:
        with pytest.raises(ConfigurationError, match="batch_size"):
            AdaptiveBatchPolicy(initial_batch_size=initial, max_batch_size=most)
    policy = AdaptiveBatchPolicy()
    for size, duration, succeeded, failed in [(0, 1.0, 0, 0), (3, 1.0, 1, 1), (2, 1.0, 3, -1), (1, math.nan, 1, 0)]:
        with pytest.raises(ConfigurationError):
            policy.record(size, duration, succeeded, failed)
    assert policy.metrics == []
