"""Counts verdicts by status and speaks up when too many of them are failures, or all of them are worth nothing."""

import logging
import time
from collections import Counter
from collections.abc import Callable

from entrostat.actors.seams import Meter
from entrostat.protocol import metrics
from entrostat.protocol.messages import Status, Verdict

log = logging.getLogger(__name__)

BATCH = 256  # verdicts judged together …
LEAST = 32  # … or so many, where that takes longer than …
LONGEST_SECONDS = 60.0
# After n zeros in a row the share of rewarded responses is below 3/n with 95 % confidence. At 3/1024 not one group of
# 16 in 20 has a response that is rewarded: whatever the reason, nothing can be learned.
ZEROS = 1024
FAILURES: tuple[Status, ...] = ("unparsable", "timeout", "error")


class StatusTally:
    """All verdicts so far by status. Warns and counts

    - where more than `alarm_share` of a batch are failures,
    - where `ZEROS` verdicts in a row have a reward of 0, whatever their status, and again at every so many more,
    - where the pool is closed and not one of at least `LEAST` verdicts had a reward above 0.
    """

    def __init__(
        self, alarm_share: float, meter: Meter | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts: Counter[Status] = Counter()
        self._alarm_share, self._meter, self._clock = alarm_share, meter, clock
        self._batch: Counter[Status] = Counter()
        self._batches = 0
        self._began = clock()
        self._reason = ""
        self._zeros = 0  # in a row
        self._closed = False

    def observe(self, verdict: Verdict) -> None:
        """Counts one verdict."""
        if not self._batch:
            self._began = self._clock()
        self.counts[verdict.status] += 1
        self._batch[verdict.status] += 1
        if verdict.status in FAILURES and verdict.detail:
            self._reason = verdict.detail
        self._zeros = 0 if verdict.reward > 0 else self._zeros + 1
        if self._zeros and self._zeros % ZEROS == 0:
            self._alarm_of_zeros(f"the last {self._zeros}")
        if self._batch.total() >= BATCH:
            self._judge_batch()

    def look(self) -> None:
        """Judges a batch that fills slowly; to be called from time to time."""
        if self._batch.total() >= LEAST and self._clock() - self._began > LONGEST_SECONDS:
            self._judge_batch()

    def close(self) -> None:
        """Judges what is left, if it is enough or all there ever was. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._batch.total() >= LEAST or (self._batch and not self._batches):
            self._judge_batch()
        if LEAST <= self.counts.total() == self._zeros:
            self._alarm_of_zeros(f"all {self._zeros}")

    def _judge_batch(self) -> None:
        failures, total = sum(self._batch[status] for status in FAILURES), self._batch.total()
        if self._meter is not None:
            self._meter.set(metrics.VERIFY_FAILURES, failures / total)
            self._meter.set(metrics.VERIFY_ZEROS, self._zeros)
        if failures / total > self._alarm_share:
            self._count("failures")
            log.warning(
                "verifier alarm: %d of the last %d responses were not judged on their content (%s); alarm_share is %g; "
                "the last reason: %s",
                failures,
                total,
                ", ".join(f"{self._batch[status]} {status}" for status in FAILURES),
                self._alarm_share,
                self._reason or "none given",
            )
        self._batch.clear()
        self._batches += 1

    def _alarm_of_zeros(self, which: str) -> None:
        self._count("zeros")
        stretches = self._zeros // ZEROS
        if not self._closed and stretches & (stretches - 1):
            return  # counted; said at 1, 2, 4, … stretches
        log.warning(
            "verifier alarm: %s responses have a reward of 0 (%s so far; the last failure's reason: %s): the policy "
            "can learn nothing from them. Score some by hand with `entrostat verify`, and read what the policy writes",
            which,
            ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items())),
            self._reason or "there was none",
        )

    def _count(self, reason: str) -> None:
        if self._meter is not None:
            self._meter.add(metrics.VERIFY_ALARMS, reason=reason)
