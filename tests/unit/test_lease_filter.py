"""The lease book with a filter: what has no signal holds no place, up to the refill, and is not lost."""

import pytest
from msgspec.structs import replace

from entrostat.controller.lease_rules import lease_rules
from entrostat.controller.leases import LeaseBook
from entrostat.protocol.entropy_settings import FixedLaw, LawSettings, SampleBalanceLaw, WeightSettings
from entrostat.protocol.messages import Lease, LeaseCounts
from tests.made_leases import book, granted, owed
from tests.made_messages import group_of, run_of, sums_up


def finish(leases: LeaseBook, lease: Lease, correct: int, *, started: int | None = None) -> None:
    assert leases.accept(group_of(lease, correct=correct, started=started), 0.0)


def test_a_group_without_a_signal_is_filtered_and_its_place_is_granted_anew() -> None:
    leases = book(batch=2, staleness=0, left_out=4)
    solved, useful = granted(leases, room=9)
    finish(leases, solved, 8)
    finish(leases, useful, 3)
    assert leases.counts() == LeaseCounts(granted=2, ready=1, filtered=1)
    assert [report.lease_id for report in leases.take_filtered()] == [solved.id]
    assert leases.take_filtered() == ()
    assert not leases.holds(solved.id)
    (other,) = granted(leases, room=9)
    assert other.prompt_id not in (solved.prompt_id, useful.prompt_id)
    finish(leases, other, 1)
    assert [report.lease_id for report in leases.order(0, 0.0)] == [useful.id, other.id]


def test_a_filtered_prompt_counts_as_consumed() -> None:
    leases = book(batch=2, staleness=0, left_out=4, prompts=6)
    solved, useful = granted(leases, room=9)
    finish(leases, solved, 8)
    assert solved.prompt_id not in owed(leases)
    assert useful.prompt_id in owed(leases)
    # The rest of the epoch comes first.
    leased = [solved.prompt_id, useful.prompt_id]
    for _ in range(4):
        (lease,) = granted(leases, room=9)
        finish(leases, lease, 8)
        leased.append(lease.prompt_id)
    assert sorted(leased) == list(range(6))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_run_whose_groups_are_all_equal_completes_no_more_than_the_refill_for_each_order(batch: int) -> None:
    leases = book(batch=batch, staleness=0, left_out=2 * batch, prompts=50)
    for step in range(5):
        completed = 0
        while not (chosen := leases.order(0, 0.0)):
            more = granted(leases, room=1, serves=step)
            for lease in more:
                finish(leases, lease, 8)
            completed += len(more)
            assert completed <= 3 * batch
        assert len(chosen) == batch
        assert completed == 3 * batch
        leases.train()
    assert leases.counts().filtered == 5 * 2 * batch
    assert sums_up(leases.counts())


def test_what_may_be_left_out_of_one_order_is_not_left_out_of_another() -> None:
    leases = book(batch=2, staleness=3, left_out=1)
    for lease, correct in zip(granted(leases, room=6), (8, 1, 8, 8, 1, 8), strict=True):
        finish(leases, lease, correct)
    # The first order: one left out, one useful, one to fill it up; the second: one left out, one useful, one waits.
    assert leases.counts() == LeaseCounts(granted=6, ready=4, filtered=2)


def test_the_newest_all_wrong_groups_come_along_and_hold_no_place() -> None:
    leases = book(batch=4, staleness=0, left_out=8, kept=2)
    *wrong, useful = granted(leases, room=4)
    for lease in wrong:
        finish(leases, lease, 0)
    finish(leases, useful, 2)
    assert [report.lease_id for report in leases.take_filtered()] == [wrong[0].id]
    assert leases.counts() == LeaseCounts(granted=4, ready=3, filtered=1)
    more = granted(leases, room=9)
    assert len(more) == 3
    for lease in more:
        finish(leases, lease, 2)
    chosen = [report.lease_id for report in leases.order(0, 0.0, along=True)]
    assert chosen == [useful.id, *(lease.id for lease in more), wrong[1].id, wrong[2].id]
    assert leases.train() == tuple(chosen)
    assert leases.counts() == LeaseCounts(granted=7, trained=6, filtered=1)
    assert len(granted(leases, room=99, serves=1)) == 4  # no place was lost


def test_all_wrong_groups_stay_behind_where_the_law_has_no_bonus_or_the_batch_no_signal() -> None:
    for along, correct in ((False, 2), (True, 8)):
        leases = book(batch=2, staleness=0, left_out=1, kept=1)
        wrong, other = granted(leases, room=2)
        finish(leases, wrong, 0)
        finish(leases, other, correct)
        finish(leases, granted(leases, room=1)[0], correct)
        assert len(leases.order(0, 0.0, along=along)) == 2
        assert [report.lease_id for report in leases.take_filtered()] == [wrong.id]


def test_an_order_given_up_gives_back_what_came_along() -> None:
    leases = book(batch=2, staleness=1, left_out=8, kept=1)
    wrong, *useful, later = granted(leases, room=4)
    finish(leases, wrong, 0)
    for lease in useful:
        finish(leases, lease, 2)
    assert len(leases.order(0, 0.0, along=True)) == 3
    leases.give_up([useful[0].id])
    assert leases.counts() == LeaseCounts(granted=4, running=1, ready=2, lost=1)
    assert leases.holds(wrong.id)
    finish(leases, later, 2)
    assert [report.lease_id for report in leases.order(0, 0.0, along=True)] == [useful[1].id, later.id, wrong.id]
    leases.give_up([wrong.id])
    assert leases.counts().lost == 2
    assert wrong.prompt_id in owed(leases)


def test_an_all_wrong_group_that_grew_too_old_does_not_come_along() -> None:
    leases = book(batch=2, staleness=0, left_out=8, kept=1)
    wrong, _ = granted(leases, room=2)
    finish(leases, wrong, 0)
    assert leases.drop_stale(1) == ()
    assert [report.lease_id for report in leases.take_filtered()] == [wrong.id]


def test_a_run_keeps_half_a_batch_of_all_wrong_groups_where_they_get_a_bonus() -> None:
    none = WeightSettings(all_wrong_share=0.0)
    assert lease_rules(run_of(batch=6, refill=2.5)) == replace(lease_rules(run_of(batch=6)), left_out=9)
    assert lease_rules(run_of(batch=6)).left_out == 0
    assert lease_rules(run_of(batch=7, refill=2.0)).kept == 3
    assert lease_rules(run_of(batch=7, refill=2.0, weight=none)).kept == 0
    laws: tuple[tuple[LawSettings, int], ...] = (
        (FixedLaw(), 0),
        (SampleBalanceLaw(), 0),
        (FixedLaw(coefficient=0.1), 3),
    )
    for law, kept in laws:
        assert lease_rules(run_of(batch=7, refill=2.0, law=law)).kept == kept
