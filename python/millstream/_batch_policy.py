"""How many items to take at a time, from how the last batches went."""

from __future__ import annotations

from typing import Literal

from millstream._arguments import INTEGER, SECONDS, check, spelt
from millstream._millstream import NativeAdaptiveBatchPolicy
from millstream.types import BatchMetrics


class AdaptiveBatchPolicy:
    """Finds how many items to take at a time.

    ``"classic"`` looks at the mean success rate of the last three batches: below 90 % the next batch has 0.7 times as
    many items (at least 1), from 98 % on 1.3 times as many (at least one more, and ``max_batch_size`` at most),
    between the two as many as before. From 10 and with all well: 10, 10, 10, 13, 16, 20, 26, 33, 42, 50, 50.

    ``"aimd"`` judges each batch by itself: half as many below 90 %, a tenth of ``max_batch_size`` more from 98 % on.

    Args:
        rule: ``"classic"`` or ``"aimd"``.
        initial_batch_size: Items of the first batch.
        max_batch_size: Most items of a batch.

    Raises:
        ConfigurationError: No such rule, or sizes that are not 1 <= initial <= max.
    """

    @spelt
    def __init__(
        self, rule: Literal["classic", "aimd"] = "classic", *, initial_batch_size: int = 10, max_batch_size: int = 50
    ) -> None:
        check({"rule": rule, "initial_batch_size": initial_batch_size, "max_batch_size": max_batch_size})
        self._native = NativeAdaptiveBatchPolicy(rule, initial_batch_size, max_batch_size)
        self._rule = rule

    def record(self, size: int, duration: float, succeeded: int, failed: int) -> int:
        """Take in how a batch went.

        Args:
            size: Items in it.
            duration: What it took, in seconds.
            succeeded: Items that were answered.
            failed: Items that were not.

        Returns:
            The size of the next batch.

        Raises:
            ConfigurationError: ``succeeded + failed`` is not ``size``, or a number is negative.
        """
        counts = {"size": size, "succeeded": succeeded, "failed": failed}
        check({**counts, "duration": duration}, kinds=dict.fromkeys(counts, INTEGER), default=SECONDS)
        return self._native.record(size, duration, succeeded, failed)

    @property
    def batch_size(self) -> int:
        """How many items to take next."""
        return self._native.batch_size

    @property
    def metrics(self) -> list[BatchMetrics]:
        """How every batch went, in order; a new list each time."""
        return [
            BatchMetrics(
                batch_size=size, duration=duration, success_rate=success_rate, items_per_second=items_per_second
            )
            for size, duration, success_rate, items_per_second in self._native.metrics()
        ]

    def __repr__(self) -> str:
        return (
            f"AdaptiveBatchPolicy({self._rule!r}, batch_size={self.batch_size}, batches={len(self._native.metrics())})"
        )
