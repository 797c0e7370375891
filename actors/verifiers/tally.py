"""Counts verdicts by status and speaks up when too many of them are failures."""

import logging
from collections import Counter

from entrostat.protocol.messages import Status, Verdict

log = logging.getLogger(__name__)

BATCH = 256  # verdicts
FAILURES: tuple[Status, ...] = ("unparsable", "timeout", "error")


class StatusTally:
    """All verdicts so far by status; a `BATCH` of them with more than `alarm_share` failures is warned about."""

    def __init__(self, alarm_share: float) -> None:
        self.counts: Counter[Status] = Counter()
        self._alarm_share = alarm_share
        self._batch: Counter[Status] = Counter()
        self._reason = ""

    def observe(self, verdict: Verdict) -> None:
        """Counts one verdict."""
        self.counts[verdict.status] += 1
        self._batch[verdict.status] += 1
        if verdict.status in FAILURES and verdict.detail:
            self._reason = verdict.detail
        if self._batch.total() >= BATCH:
            self._judge_batch()

    def _judge_batch(self) -> None:
        failures = sum(self._batch[status] for status in FAILURES)
        if failures / BATCH > self._alarm_share:
            log.warning(
                "verifier alarm: %d of the last %d responses were not judged on their content (%s); alarm_share is %g; "
                "the last reason: %s",
                failures,
                BATCH,
                ", ".join(f"{self._batch[status]} {status}" for status in FAILURES),
                self._alarm_share,
                self._reason or "none given",
            )
        self._batch.clear()
