"""Drawing prompts by how likely their results are mixed: the probability, the floor, and that a seed says it all."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.integrate import quad
from scipy.stats import beta, binomtest

from entrostat.controller.difficulty import DifficultyTable, mixed_chance, most_mixed
from entrostat.controller.events import StepReported
from entrostat.controller.prompts import PromptOrder, PromptPosition
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import FixedLaw, WeightSettings
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import LevelEntropy
from entrostat.protocol.settings import MixedResults, Stations
from entrostat.protocol.task_settings import ReasoningGym
from tests.made_messages import Scene, group_of, published, resumed, run_of, step_of

SHAPES = st.floats(0.05, 60.0)


def by_hand(a: float, b: float, samples: int) -> float:
    """P(mixed) as it is defined, the integral split where the density may be infinite."""

    def density(g: float) -> float:
        return float(beta.pdf(g, a, b)) * (1.0 - g**samples - (1.0 - g) ** samples)

    return sum(float(quad(density, *part, limit=200)[0]) for part in ((0.0, 0.5), (0.5, 1.0)))


@pytest.mark.parametrize("samples", [2, 4, 16])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.6, 0.4), (2.0, 30.0), (40.0, 3.0), (25.0, 25.0)])
def test_the_chance_of_mixed_results_is_the_integral_over_the_estimate(a: float, b: float, samples: int) -> None:
    assert mixed_chance(a, b, samples) == pytest.approx(by_hand(a, b, samples), abs=1e-6)


def test_the_chance_of_mixed_results_is_how_often_they_are() -> None:
    random = np.random.default_rng(5)
    right = random.binomial(8, random.beta(0.7, 2.0, 100_000))
    mixed = int(((right > 0) & (right < 8)).sum())
    assert binomtest(mixed, 100_000, mixed_chance(0.7, 2.0, 8)).pvalue > 1e-3


@given(SHAPES, SHAPES, st.integers(2, 64))
def test_the_chance_is_a_share_of_the_largest_and_the_same_for_right_and_wrong(
    a: float, b: float, samples: int
) -> None:
    chance = mixed_chance(a, b, samples)
    assert 0.0 <= chance <= most_mixed(samples) + 1e-12
    assert chance == pytest.approx(mixed_chance(b, a, samples), abs=1e-12)


def test_limits_of_the_chance_are_known() -> None:
    assert mixed_chance(1.0, 1.0, 9) == pytest.approx(1.0 - 2.0 / 10.0), "uniform: 1 − 2/(G+1)"
    assert mixed_chance(1e7, 1e7, 8) == pytest.approx(most_mixed(8), abs=1e-6)
    assert mixed_chance(0.5, 1e6, 8) < 1e-5
    assert mixed_chance(1e6, 0.5, 8) < 1e-5


def test_the_table_s_chance_is_of_the_prompt_s_own_counts_beside_its_level() -> None:
    table = DifficultyTable(["a", "a", "b"], WeightSettings(half_life_versions=5.0))
    table.observe(0, 2, 3, 5)
    table.observe(1, 4, 0, 8)
    at = 9
    aged = {0: 2.0 ** (-7 / 5), 1: 2.0 ** (-5 / 5)}
    right, wrong = 3 * aged[0], 5 * aged[0] + 8 * aged[1]
    level = (right + 0.5) / (right + wrong + 1.0)
    expected = {
        0: mixed_chance(0.5 * level + 3 * aged[0], 0.5 * (1 - level) + 5 * aged[0], 8),
        1: mixed_chance(0.5 * level, 0.5 * (1 - level) + 8 * aged[1], 8),
        2: mixed_chance(0.25, 0.25, 8),
    }
    for prompt, chance in expected.items():
        assert table.mixed(prompt, at, 8, 0.5) == pytest.approx(chance / most_mixed(8), rel=1e-5)


def test_what_was_not_seen_for_long_is_drawn_like_its_level_again() -> None:
    table = DifficultyTable(["a", "a"], WeightSettings(half_life_versions=5.0))
    table.observe(0, 0, 0, 400)
    assert table.mixed(0, 0, 8, 0.5) < 0.02
    assert table.mixed(0, 500, 8, 0.5) == pytest.approx(table.mixed(1, 500, 8, 0.5), rel=1e-6)


# ── the order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def chance_of(prompt: int) -> float:
    return (0.1, 0.4, 1.0)[prompt % 3]


def order(seed: int = 3) -> PromptOrder:
    return PromptOrder(30, seed, shuffle=True, chance=chance_of)


def drawn(made: PromptOrder, count: int) -> list[int]:
    return [made.take((), 0) for _ in range(count)]


def test_a_prompt_is_drawn_in_the_share_of_its_turns_that_its_chance_says() -> None:
    made = order()
    seen = Counter(drawn(made, 15_000))
    turns = made.position().epoch  # whole ones; the last is not done
    assert made.passed_over + 15_000 == turns * 30 + made.position().index
    for prompt in range(30):
        if chance_of(prompt) == 1.0:
            assert seen[prompt] in (turns, turns + 1)
        else:
            assert binomtest(min(seen[prompt], turns), turns, chance_of(prompt)).pvalue > 1e-4


def test_a_seed_says_who_is_drawn_and_another_says_otherwise() -> None:
    assert drawn(order(3), 500) == drawn(order(3), 500)
    assert drawn(order(3), 500) != drawn(order(4), 500)


@given(st.integers(0, 300))
def test_a_position_in_the_middle_of_an_epoch_says_all(count: int) -> None:
    made = order()
    drawn(made, count)
    later = order()
    later.restore(wire.decode(wire.encode(made.position()), PromptPosition))
    assert drawn(made, 100) == drawn(later, 100)
    assert made.passed_over == later.passed_over


def test_what_was_put_back_or_held_is_not_judged_again() -> None:
    chances = dict.fromkeys(range(4), 1.0)
    made = PromptOrder(4, 0, shuffle=False, chance=lambda prompt: chances[prompt])
    assert drawn(made, 2) == [0, 1]
    assert made.take({2}, 1) == 3  # 2 was busy when its turn came
    chances.update(dict.fromkeys(range(4), 1e-9))
    made.put_back((0,))
    assert made.take({2}, 1) == 0
    made.freed(2)
    assert made.take((), 0) == 2


def test_passing_over_ends_though_all_but_one_are_busy() -> None:
    made = PromptOrder(3, 1, shuffle=True, chance=lambda _: 0.01)
    first = made.take((), 0)
    second = made.take({first}, 1)
    assert {first, second, made.take({first, second}, 2)} == {0, 1, 2}
    assert made.take({0, 1, 2}, 3) in range(3), "and where all are"


# ── the controller ───────────────────────────────────────────────────────────────────────────────────────────────────


def mixed_run(*, batch: int, staleness: int) -> Stations:
    weight = WeightSettings(half_life_versions=1e6)
    run = run_of(law=FixedLaw(coefficient=0.1), weight=weight, batch=batch, staleness=staleness)
    return replace(run, batch=replace(run.batch, sampling=MixedResults(floor=0.1)))


def sampled(s: Scene, steps: int) -> Counter[int]:
    """So many steps in which the first ten prompts are never solved, the second ten always, the others half."""
    seen: Counter[int] = Counter()
    for _ in range(steps):
        order = s.step(correct=lambda prompt: (0, 4, 2)[prompt // 10])
        seen.update(group.prompt_id for group in order.groups)
    return seen


def test_a_prompt_that_is_never_solved_is_not_forgotten() -> None:
    s = Scene(Controller(mixed_run(batch=3, staleness=0), ["a"] * 30))
    sampled(s, 60)
    before = s.controller.state().position
    seen = sampled(s, 400)
    turns = s.controller.state().position.epoch - before.epoch
    for kind, prompts in (("never", range(10)), ("always", range(10, 20))):
        count = sum(seen[prompt] for prompt in prompts)
        assert binomtest(count, 10 * turns, 0.1, alternative="less").pvalue > 1e-3, kind
        assert count / (10 * turns) < 0.25, kind
    assert min(seen[prompt] for prompt in range(20, 30)) > 0.8 * turns


def test_a_turn_s_chance_is_the_floor_and_p_mixed_s_share_of_the_rest_as_it_is_now() -> None:
    run = mixed_run(batch=3, staleness=0)
    weight = WeightSettings(half_life_versions=3.0)
    run = replace(run, entropy=replace(run.entropy, weight=weight))
    s = Scene(Controller(run, ["a"] * 30))
    sampled(s, 30)
    table = DifficultyTable(["a"] * 30, weight)
    table.restore(s.controller.state().difficulty)
    chance, now, samples = s.controller._chance_of(run), s.controller.version.step, run.rollout.samples_per_prompt
    assert chance is not None
    fresh = [table.mixed(prompt, 0, samples, 0.5) for prompt in range(30)]  # as if nothing had been forgotten
    mixed = [table.mixed(prompt, now, samples, 0.5) for prompt in range(30)]
    assert np.abs(np.subtract(fresh, mixed)).max() > 0.1
    assert [chance(prompt) for prompt in range(30)] == pytest.approx([0.1 + 0.9 * one for one in mixed])


def test_passed_over_is_counted_and_goes_on_in_a_later_branch() -> None:
    run = mixed_run(batch=3, staleness=0)
    s = Scene(Controller(run, ["a"] * 30))
    assert s.controller.view().passed_over == 0
    sampled(s, 60)
    count = s.controller.view().passed_over
    assert count > 50
    at = s.controller.version
    later = resumed(run, ["a"] * 30, s.controller.state(), at.branch + 1, at.step)
    assert later.passed_over == count


def test_a_controller_that_takes_over_draws_what_the_other_would_have() -> None:
    run = mixed_run(batch=3, staleness=1)
    s = Scene(Controller(run, ["a"] * 30))
    sampled(s, 37)
    other = Scene(Controller(run, ["a"] * 30, wire.decode(wire.encode(s.controller.state()), ControllerState)))
    other.serves = s.serves
    assert sampled(s, 40) == sampled(other, 40)
    assert wire.encode(s.controller.state()).tobytes() == wire.encode(other.controller.state()).tobytes()


def test_a_curriculum_does_not_move_the_thermometer() -> None:
    """The prompts of one level are learnt and hardly drawn any more; the policy's entropy on each level stays."""
    s = Scene(Controller(mixed_run(batch=4, staleness=0), ["easy", "hard"] * 10))
    each = {"easy": 0.1, "hard": 0.5}
    told, easy = [], []
    for step in range(80):
        for lease in s.pulse(room=99).leases:
            learnt = lease.prompt_id % 2 == 0 and step >= 10
            s.pulse(reports=(group_of(lease, started=s.serves, correct=4 if learnt else 2),))
        order = s.order()
        assert order is not None
        levels = Counter(group.level for group in order.groups)
        report = step_of(order, levels=tuple(level_of(name, levels[name], each[name]) for name in levels))
        report = replace(report, clamped_entropy=sum(each[name] * count / 4 for name, count in levels.items()))
        s.apply(StepReported(report=report, at=s.at))
        s.serves = order.version.step + 1
        s.apply(published(s.serves))
        easy.append(levels["easy"] / 4)
        if len(levels) == 2:
            told.append(s.controller.steering.measured_entropy)
    assert np.mean(easy[-30:]) < 0.75 * np.mean(easy[:10]), "or there was no curriculum"
    assert len(told) > 30
    assert told == pytest.approx([told[0]] * len(told))


def level_of(name: str, tokens: int, entropy: float) -> LevelEntropy:
    return LevelEntropy(level=name, tokens=tokens, entropy=entropy, clamped_entropy=entropy, sampled_entropy=entropy)


def test_weights_need_to_know_how_many_prompts_each_task_has() -> None:
    task = ReasoningGym(dataset="any", size=1, weight=1.0)
    run = replace(run_of(), tasks=(task, replace(task, weight=3.0)))
    with pytest.raises(TaskError, match="expected a number for each, 10 together"):
        Controller(run, ["a"] * 10, task_prompts=(4, 4))
    s = Scene(Controller(run, ["a"] * 12, task_prompts=(6, 6)))
    seen: Counter[int] = Counter()
    for _ in range(24):
        seen.update(group.prompt_id for group in s.step().groups)
    assert sum(seen[prompt] for prompt in range(6)) == pytest.approx(12, abs=2)
    assert not math.isnan(s.controller.view().reward)
