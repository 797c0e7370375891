"""The lease book: one end for every lease, bounded staleness, and no prompt twice or never."""

from collections import Counter

import pytest
from msgspec.structs import replace

from entrostat.controller.leases import LeaseBook, LeaseRules, derived_seed, lease_rules
from entrostat.controller.prompts import PromptOrder
from entrostat.protocol.entropy_settings import FixedLaw, LawSettings, SampleBalanceLaw, WeightSettings
from entrostat.protocol.messages import Lease, LeaseCounts
from tests.made_messages import group_of, run_of, sums_up, version

ACTOR = (0, 1)


def book(
    *,
    batch: int = 4,
    staleness: int = 1,
    prompts: int = 100,
    branch: int = 0,
    start: int = 0,
    counts: LeaseCounts | None = None,
    next_number: int = 0,
    left_out: int = 0,
    kept: int = 0,
) -> LeaseBook:
    rules = LeaseRules(
        batch=batch,
        max_staleness=staleness,
        last_step=1000,
        samples=8,
        lease_seconds=10.0,
        seed=7,
        left_out=left_out,
        kept=kept,
    )
    order = PromptOrder(prompts, 7, shuffle=True)
    return LeaseBook(rules, order, branch=branch, start=start, counts=counts, next_number=next_number)


def granted(
    leases: LeaseBook, room: int, *, serves: int = 0, newest: int | None = None, at: float = 0.0
) -> list[Lease]:
    newest = serves if newest is None else newest
    return list(leases.grant(ACTOR, room=room, serves=version(serves), newest=version(newest), at=at))


def test_an_actor_gets_no_more_than_its_room() -> None:
    assert len(granted(book(), room=3)) == 3
    assert granted(book(), room=0) == []


def test_grants_stop_at_the_allowance_of_the_version_the_actor_serves() -> None:
    leases = book(batch=4, staleness=1)
    assert len(granted(leases, room=99, serves=0)) == 8
    assert granted(leases, room=99, serves=0, newest=3) == []
    assert len(granted(leases, room=99, serves=1, newest=3)) == 4
    # An actor can't serve what nobody published.
    assert granted(leases, room=99, serves=5, newest=1) == []


def test_an_actor_on_another_branch_gets_nothing() -> None:
    leases = book(branch=1, start=3)
    assert leases.grant(ACTOR, room=9, serves=version(4, 0), newest=version(3, 1), at=0.0) == ()
    assert len(leases.grant(ACTOR, room=99, serves=version(3, 1), newest=version(3, 1), at=0.0)) == 8


def test_nothing_is_sampled_for_steps_after_the_last() -> None:
    rules = LeaseRules(batch=4, max_staleness=9, last_step=2, samples=8, lease_seconds=10.0, seed=7)
    leases = LeaseBook(rules, PromptOrder(100, 7, shuffle=True), branch=0, start=0)
    assert len(granted(leases, room=99)) == 8


def test_a_lease_that_is_renewed_does_not_expire() -> None:
    leases = book()
    kept, forgotten = granted(leases, room=2)
    assert leases.renew(ACTOR, (kept.id,), at=8.0) == ()
    assert leases.expire(9.9) == ()
    assert leases.expire(10.0) == (forgotten.id,)
    assert leases.expire(18.0) == (kept.id,)


def test_an_actor_learns_which_of_its_leases_ended_without_it() -> None:
    leases = book()
    lease = granted(leases, room=1)[0]
    leases.expire(10.0)
    assert leases.renew(ACTOR, (lease.id, 999), at=11.0) == (lease.id, 999)
    other = granted(leases, room=1, at=11.0)[0]
    assert leases.renew((5, 1), (other.id,), at=12.0) == (other.id,)


def test_a_lease_ends_exactly_one_way() -> None:
    leases = book(batch=1, staleness=0)
    lease = granted(leases, room=1)[0]
    assert leases.accept(group_of(lease), 0.0)
    assert not leases.accept(group_of(lease), 0.0)  # said twice
    assert leases.expire(1e9) == ()  # ready leases have no deadline
    assert [report.lease_id for report in leases.order(0.0)] == [lease.id]
    assert leases.drop_stale(99) == ()
    assert leases.train() == (lease.id,)
    assert leases.train() == ()
    assert leases.counts() == LeaseCounts(granted=1, trained=1)


def test_a_report_of_an_expired_lease_is_late() -> None:
    leases = book()
    lease = granted(leases, room=1)[0]
    leases.expire(10.0)
    assert not leases.accept(group_of(lease), 0.0)
    assert not leases.holds(lease.id)


def test_a_report_from_someone_else_is_refused() -> None:
    leases = book()
    lease = granted(leases, room=1)[0]
    assert not leases.accept(group_of(lease, incarnation=2), 0.0)
    assert not leases.accept(group_of(lease, slot=1), 0.0)
    assert leases.holds(lease.id)
    assert leases.accept(group_of(lease), 0.0)


def test_what_came_back_is_leased_first() -> None:
    leases = book()
    first = granted(leases, room=2)
    leases.expire(10.0)
    again = granted(leases, room=3, at=10.0)
    assert [lease.prompt_id for lease in again[:2]] == [lease.prompt_id for lease in first]
    assert {lease.id for lease in again}.isdisjoint(lease.id for lease in first)


def test_too_old_groups_are_dropped_and_their_prompts_leased_again() -> None:
    leases = book(batch=2, staleness=1)
    old, fresh = granted(leases, room=2)
    assert leases.accept(group_of(old, started=0), 0.0)
    assert leases.accept(group_of(fresh, started=1), 0.0)
    assert leases.drop_stale(1) == ()
    assert leases.drop_stale(2) == (old.id,)
    assert leases.counts() == LeaseCounts(granted=2, ready=1, stale=1)
    assert granted(leases, room=1, serves=1)[0].prompt_id == old.prompt_id


def test_a_batch_takes_the_oldest_start_first_then_the_first_lease() -> None:
    leases = book(batch=2, staleness=2)
    a, b, c, d = granted(leases, room=4)
    for lease, started in ((d, 1), (b, 0), (c, 1), (a, 2)):
        leases.accept(group_of(lease, started=started), 0.0)
    assert [report.lease_id for report in leases.order(0.0)] == [b.id, c.id]


def test_a_batch_is_made_only_when_it_is_whole() -> None:
    leases = book(batch=3)
    for lease in granted(leases, room=2):
        leases.accept(group_of(lease), 0.0)
    assert leases.order(0.0) == ()
    assert leases.counts().ready == 2


def test_a_batch_waits_for_older_groups_that_are_on_their_way() -> None:
    leases = book(batch=2)
    first, slow, second, third = granted(leases, 4)
    leases.accept(group_of(first), 1.0)
    leases.accept(group_of(second), 1.0)
    assert leases.order(1.5) == ()  # `slow` was granted before `second`
    leases.accept(group_of(slow), 1.6)
    assert [report.lease_id for report in leases.order(1.6)] == [first.id, slow.id]
    assert third.id > second.id


def test_a_batch_does_not_wait_for_a_group_that_takes_twice_as_long_as_others() -> None:
    leases = book(batch=2)
    first, dead, second = granted(leases, 3)
    leases.accept(group_of(first), 1.0)
    leases.accept(group_of(second), 1.0)
    assert leases.order(1.9) == ()
    assert [report.lease_id for report in leases.order(2.1)] == [first.id, second.id]
    assert dead.id < second.id


def test_a_prompt_is_twice_in_a_batch_only_where_there_is_no_other() -> None:
    leases = book(batch=4, staleness=3, prompts=6)
    for lease in granted(leases, room=12):
        leases.accept(group_of(lease), 0.0)
    assert len({report.prompt_id for report in leases.order(0.0)}) == 4
    pair = book(batch=4, staleness=0, prompts=2)
    for lease in granted(pair, room=4):
        pair.accept(group_of(lease), 0.0)
    assert Counter(report.prompt_id for report in pair.order(0.0)) == {0: 2, 1: 2}


def test_an_order_given_up_loses_only_the_missing_groups() -> None:
    leases = book(batch=3, staleness=0)
    first = granted(leases, room=3)
    for lease in first:
        leases.accept(group_of(lease), 0.0)
    leases.order(0.0)
    leases.give_up((first[1].id, 12345))
    assert leases.counts() == LeaseCounts(granted=3, ready=2, lost=1)
    assert granted(leases, room=9)[0].prompt_id == first[1].prompt_id
    assert sums_up(leases.counts())


def test_a_new_life_of_a_slot_ends_the_leases_of_the_old_one() -> None:
    leases = book()
    mine = granted(leases, room=2)
    others = leases.grant((1, 1), room=2, serves=version(0), newest=version(0), at=0.0)
    assert leases.evict(0) == tuple(lease.id for lease in mine)
    assert all(leases.holds(lease.id) for lease in others)


def test_a_lease_says_all_that_an_actor_needs_and_seeds_follow_from_the_run() -> None:
    lease = granted(book(), room=1)[0]
    assert (lease.samples, lease.version, lease.deadline_seconds) == (8, version(0), 10.0)
    assert lease.seed == granted(book(), room=1)[0].seed == derived_seed(7, "lease", 0)
    seeds = {derived_seed(run, "lease", number) for run in range(20) for number in range(500)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**48 for seed in seeds)


def test_leases_of_two_branches_never_share_an_id() -> None:
    before = granted(book(), room=5)
    after = book(branch=1, next_number=2).grant(ACTOR, room=5, serves=version(0, 1), newest=version(0, 1), at=0.0)
    assert {lease.id for lease in before}.isdisjoint(lease.id for lease in after)


def test_leases_of_an_abandoned_branch_count_as_rewound() -> None:
    leases = book(batch=3)
    running = granted(leases, room=5)
    for lease in running[:3]:
        leases.accept(group_of(lease), 0.0)
    leases.order(0.0)
    later = book(branch=1, counts=leases.counts(), next_number=leases.next_number)
    assert later.counts() == LeaseCounts(granted=5, rewound=5)
    assert sums_up(later.counts())


def test_every_way_to_end_untrained_is_a_warning_with_its_prompts(caplog: pytest.LogCaptureFixture) -> None:
    leases = book(batch=2, staleness=0)
    lost, kept = granted(leases, 2)
    for lease in (lost, kept):
        leases.accept(group_of(lease), 1.0)
    assert leases.order(1.0)
    leases.give_up([lost.id, lost.id, 99])
    leases.drop_stale(1)
    late = granted(leases, 1, at=1.0)[0]
    leases.expire(5.0)
    leases.expire(11.0)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"1 leases ended as {outcome}; their prompts are leased again: [{lease.prompt_id}]")
        for outcome, lease in (("lost", lost), ("stale", kept), ("expired", late))
    ]


def test_a_prompt_whose_turn_came_while_it_was_sampled_is_leased_as_soon_as_it_is_free() -> None:
    rules = LeaseRules(batch=1, max_staleness=9, last_step=99, samples=8, lease_seconds=10.0, seed=7)
    leases = LeaseBook(rules, PromptOrder(3, 7, shuffle=False), branch=0, start=0)
    slow, *quick = granted(leases, room=3)
    for lease in quick:
        leases.accept(group_of(lease), 0.0)
        leases.order(0.0)
        leases.train()
    # The second epoch: prompt 0 is still being sampled when its turn comes.
    assert [lease.prompt_id for lease in granted(leases, room=1, serves=2)] == [1]
    leases.accept(group_of(slow), 0.0)
    leases.order(0.0)
    assert [lease.prompt_id for lease in granted(leases, room=2, serves=2)] == [0, 2]


# ── a filter ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    assert [report.lease_id for report in leases.order(0.0)] == [useful.id, other.id]


def test_a_filtered_prompt_counts_as_consumed() -> None:
    leases = book(batch=2, staleness=0, left_out=4, prompts=6)
    solved, useful = granted(leases, room=9)
    finish(leases, solved, 8)
    owed = leases.position().returned.tolist()
    assert solved.prompt_id not in owed
    assert useful.prompt_id in owed
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
        while not (chosen := leases.order(0.0)):
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
    chosen = [report.lease_id for report in leases.order(0.0, along=True)]
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
        assert len(leases.order(0.0, along=along)) == 2
        assert [report.lease_id for report in leases.take_filtered()] == [wrong.id]


def test_an_order_given_up_gives_back_what_came_along() -> None:
    leases = book(batch=2, staleness=1, left_out=8, kept=1)
    wrong, *useful, later = granted(leases, room=4)
    finish(leases, wrong, 0)
    for lease in useful:
        finish(leases, lease, 2)
    assert len(leases.order(0.0, along=True)) == 3
    leases.give_up([useful[0].id])
    assert leases.counts() == LeaseCounts(granted=4, running=1, ready=2, lost=1)
    assert leases.holds(wrong.id)
    finish(leases, later, 2)
    assert [report.lease_id for report in leases.order(0.0, along=True)] == [useful[1].id, later.id, wrong.id]
    leases.give_up([wrong.id])
    assert leases.counts().lost == 2
    assert wrong.prompt_id in leases.position().returned.tolist()


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
