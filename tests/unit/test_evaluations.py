"""Evaluations on a rollout actor: beside its leases, under one version, and given up by name."""

import threading

import msgspec
import pytest

from entrostat.actors import evaluations
from entrostat.protocol.errors import Stalled, StationLost
from entrostat.protocol.messages import EvaluationRequest
from tests.fake_stations import PROMPTS, SAMPLES, World, lease
from tests.made_messages import manifest, version


def request(count: int, samples: int = SAMPLES) -> EvaluationRequest:
    return EvaluationRequest(prompts=PROMPTS[:count], samples=samples, temperature=1.0, seed=5)


def test_an_evaluation_shares_the_engine_and_answers_per_prompt() -> None:
    world = World()
    world.granted(lease(15))
    answer = world.worker.evaluate(request(5))
    world.turn()
    names = [f"evaluation-1-{number}" for number in range(5)]
    assert world.engine.order == ["lease-15", *names[:3]], "no more at once than leases may be"
    for name in names:
        world.engine.finish(name)
        world.turn()
    world.turn(2)
    result = answer.result(0)
    assert result.version == version(0)
    assert result.statuses.tolist() == [[0] * SAMPLES] * 5
    assert result.rewards.tolist() == [[1.0] * SAMPLES] * 5
    assert result.finish.tolist() == [[1, 0, 0]] * 5
    assert result.lengths.tolist() == [[1] * SAMPLES] * 5
    assert [(one.count, one.mean) for one in result.surprise] == [(SAMPLES, 0.5)] * 5
    assert result.levels == ("easy",) * 5
    assert "lease-15" in world.engine.submitted


def digest(*changes: dict[str, str]) -> str:
    """What an evaluation of three prompts says they are, the first of them changed."""
    asked = request(3)
    for change in changes:
        first = msgspec.structs.replace(asked.prompts[0], **change)
        asked = msgspec.structs.replace(asked, prompts=(first, *asked.prompts[1:]))
    world = World()
    answer = world.worker.evaluate(asked)
    world.turn()
    world.engine.finish(*(f"evaluation-1-{number}" for number in range(3)))
    world.turn(3)
    return answer.result(0).prompts


@pytest.mark.parametrize("field", ["name", "text", "answer"])
def test_prompts_that_changed_under_their_names_are_not_the_same_prompts(field: str) -> None:
    assert digest() == digest()
    assert digest({field: "another"}) != digest()


def test_no_weights_are_loaded_while_an_evaluation_runs() -> None:
    world = World()
    answer = world.worker.evaluate(request(1))
    world.turn()
    world.granted(lease(3, step=1), manifest=manifest(1))
    assert world.engine.version == version(0)
    assert world.engine.order == ["evaluation-1-0"], "a lease of the new version waits"
    world.engine.finish("evaluation-1-0")
    world.turn(3)
    assert answer.result(0).version == version(0)
    assert world.engine.version == version(1)
    assert world.engine.order[-1] == "lease-3"


def test_evaluations_follow_one_another() -> None:
    world = World()
    answers = [world.worker.evaluate(request(2)) for _ in range(2)]
    world.engine.finish(*(f"evaluation-{serial}-{number}" for serial in (1, 2) for number in (0, 1)))
    world.turn(10)
    assert all(answer.result(0).statuses.tolist() == [[0] * SAMPLES] * 2 for answer in answers)


def test_an_evaluation_that_never_ends_is_given_up_by_name() -> None:
    world = World()
    answer = world.worker.evaluate(request(1))
    world.turn()
    world.turn(seconds=evaluations.EVALUATION_SECONDS + 1)
    with pytest.raises(Stalled, match="1 prompts"):
        answer.result(0)
    assert world.engine.aborted == ["evaluation-1-0"]
    assert world.worker.idle


def test_a_late_verdict_of_an_evaluation_that_was_given_up_counts_nowhere() -> None:
    world = World()
    world.verifiers.open = False
    given_up = world.worker.evaluate(request(1))
    world.engine.finish("evaluation-1-0")
    world.turn(2)
    late, world.verifiers.judged = world.verifiers.judged, []
    world.turn(seconds=evaluations.EVALUATION_SECONDS + 1)
    assert given_up.exception(0) is not None
    answer = world.worker.evaluate(request(1))
    world.turn()
    world.verifiers.judged = late
    world.verifiers.open = True
    world.turn(3)
    assert not answer.done()
    world.engine.finish("evaluation-2-0")
    world.turn(3)
    assert answer.result(0).statuses.tolist() == [[0] * SAMPLES]


def test_whoever_waits_for_an_evaluation_hears_why_the_actor_stopped() -> None:
    world = World()
    answer = world.worker.evaluate(request(1))
    world.turn()
    waiting = world.worker.evaluate(request(1))
    world.worker.abandon(StationLost("fenced"))
    for asked in (answer, waiting, world.worker.evaluate(request(1))):
        with pytest.raises(StationLost, match="fenced"):
            asked.result(0)


def test_an_evaluation_wakes_an_idle_actor() -> None:
    world = World()
    asked = threading.Timer(0.02, lambda: world.worker.evaluate(request(1)))
    asked.start()
    world.turn(20)
    asked.join()
    world.turn()
    assert world.engine.order == ["evaluation-1-0"]
