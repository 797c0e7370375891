"""Settings that are valid one by one and contradict each other, and those at the edge of sense."""

from pathlib import Path

import pytest

from entrostat.config import load
from entrostat.protocol.entropy_settings import BandLaw, ThermostatLaw
from entrostat.protocol.errors import ConfigError
from tests.made_config import refused, small_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return small_file(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch.prompts=19"], "[batch] prompts = 19 prompts in each optimizer step, but the tasks hold 18"),
        (["rollout.max_response_tokens=256"], "leaves no room for a prompt in the model's context = 256"),
        (
            ["rollout.engine.kind=vllm", "rollout.engine.max_model_tokens=64"],
            "leaves no room for a prompt in [rollout.engine] max_model_tokens = 64",
        ),
        (
            ["rollout.engine.kind=vllm", "rollout.engine.max_model_tokens=512"],
            "is above what the model holds (256)",
        ),
        (["learner.microbatch_tokens=64"], "can't hold a prompt and one response"),
        (["learner.transport=ipc", "learner.device=cpu"], '"ipc" shares a GPU\'s memory'),
        (["learner.transport=ipc", "rollout.engine.kind=simulated"], "needs a real engine"),
        (["learner.transport=nccl", "learner.device=cpu"], '"nccl" goes from GPU to GPU, but device = "cpu" has none'),
        (["learner.transport=nccl", "rollout.engine.kind=simulated"], '"nccl" needs a real engine'),
        (["learner.transport=nccl", "rollout.actors=2"], "sends to the GPUs of one actor"),
        (
            ["learner.ranks=2", "learner.transport=ipc", "learner.device=cuda", "rollout.engine.kind=vllm"],
            '[learner] ranks = 2, but transport = "ipc" is for one GPU',
        ),
        (["learner.ranks=2", "learner.gpus=0.5"], "gpus = 0.5 for each of ranks = 2, which take whole GPUs, one each"),
        (["learner.ranks=2", "learner.gpus=1.5"], 'one each: set 1, or use CPUs (device = "cpu")'),
        (["learner.ranks=2", "learner.gpus=0"], "which take whole GPUs, one each: set 1"),
        (
            ["learner.ranks=2", "learner.rank_seconds=600"],
            "[learner] rank_seconds = 600 is not below [run] stall_seconds = 600",
        ),
        (
            ["learner.transport=ipc", "rollout.actors=2"],
            '[rollout] actors = 2, but [learner] transport = "ipc" is for one GPU',
        ),
        (
            ["learner.transport=ipc", "rollout.engine.kind=vllm", "rollout.engine.tensor_parallel=2"],
            '[rollout.engine] tensor_parallel = 2, but [learner] transport = "ipc" is for one GPU',
        ),
        (["learner.weights.kind=lora", "learner.weights.rank=9"], "rank = 9 is above the model's width of 8"),
        (["learner.minibatches=9"], "[learner] minibatches = 9 optimizer steps of at least one group each"),
        (["learner.proximal=behaviour", "learner.sequence_mask=0.1"], "[learner] sequence_mask = 0.1 rejects samples"),
        (["batch.filter=zero_variance", "batch.refill=1.1"], "[batch] refill = 1.1 times 8 prompts leaves no group"),
        (["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0"], "= 0 drops none of 100 tokens"),
        (["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0.009"], "drops none of 100 tokens"),
        (["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0.995"], "leaves one of 100 tokens"),
        (["entropy.estimator.kind=top_k", "entropy.estimator.k=1"], "a single token has no entropy"),
        (["entropy.estimator.kind=top_k", "entropy.estimator.k=100"], "k = 100 is all 100 tokens"),
        (["entropy.tokens.kind=smoothed", "entropy.tokens.low=2"], "[entropy.tokens] low = 2 is not below high = 2"),
        (["entropy.law.kind=bang_bang", "entropy.law.floor=1"], "floor = 1 is not below ceiling = 0.005"),
        (["entropy.law.kind=bang_bang", "entropy.law.delta=5e-3"], "crosses the box floor = 0 … ceiling = 0.005"),
        (["entropy.law.kind=bang_bang", "entropy.law.initial=1"], "initial = 1 is outside the box"),
        (["entropy.law.kind=pi", "entropy.law.floor=1"], "[entropy.law] floor = 1 is not below ceiling = 1"),
        (["entropy.law.kind=pi", "entropy.law.proportional=0", "entropy.law.integral=0"], "the law would never act"),
        (["entropy.law.kind=quadratic", "entropy.law.target=4.7"], "100 tokens have an entropy of at most 4.61"),
        (["entropy.law.kind=sample_balance", "entropy.law.target=9"], "[entropy.law] target = 9 nats can't be reached"),
        (["learner.drift_stop=0.1"], "[learner] drift_stop = 0.1 is not above drift_alarm = 0.1"),
        (["learner.truncated=penalise", "learner.truncation_penalty=0"], "penalises nothing"),
        (["entropy.law.floor_ratio=20"], "floor_ratio = 20 is not below ceiling_ratio = 10"),
        (["entropy.law.floor_ratio=2"], "[entropy.law] balance: lies outside its own box"),
        (["run.stall_seconds=120"], "one lost actor would end the run"),
        (["verifier.deadline_seconds=600"], "one hanging verification would end the run"),
        (['tasks.0.verifier.kind="code"', "verifier.deadline_seconds=8"], "would cost its verifier process"),
        (["run.name=a/b"], "expected a plain folder name"),
        (["tasks.0.template=hello"], "has no {question} in it"),
        (["tasks=[]"], "[tasks]: is empty"),
        (["evaluation.every_steps=5"], "an evaluation needs at least one"),
        (["evaluation.samples=5"], "an evaluation needs at least one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(file: Path, overrides: list[str], expected: str) -> None:
    load(file)
    assert expected in refused(file, *overrides)


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("learner.ranks=281474976710656", "1024"),
        ("learner.rank_seconds=1e-9", "1"),
        ("learner.rank_seconds=1e300", "86400"),
        ("learner.threads=1000000000", "4096"),
        ("learner.probe_sequences=100000000", "4096"),
        ("rollout.temperature=1e-300", "0.01"),
        ("evaluation.temperature=0.009", "0.01"),
        ("rollout.engine.threads=1000000000", "4096"),
        ("run.stall_seconds=1e300", "1000000000"),
    ],
)
def test_a_number_no_machine_can_keep_is_refused_with_its_bound(file: Path, override: str, allowed: str) -> None:
    engine = ["rollout.engine.kind=vllm"]
    load(file, engine)
    said = refused(file, *engine, override)
    assert f"{override.rpartition('=')[0].rpartition('.')[2]}" in said
    assert allowed in said


@pytest.mark.parametrize("lag", [0, 2, 4])
def test_a_run_has_one_delay_and_a_simulation_any(file: Path, lag: int) -> None:
    law = load(file, [f"entropy.law.lag={lag}"]).entropy.law
    assert isinstance(law, ThermostatLaw)
    assert law.lag == lag
    with pytest.raises(ConfigError, match=rf"--set: \[entropy.law\] lag = {lag}, expected 1: .*; leave it out"):
        load(file, [f"entropy.law.lag={lag}"], to_run=True)
    load(file, ["entropy.law.lag=1"], to_run=True)
    load(file, ["entropy.law.kind=fixed"], to_run=True)


def test_drawing_by_mixed_results_has_no_place_in_a_deterministic_run(file: Path) -> None:
    mixed = ["batch.sampling.kind=mixed_results", "learner.device=cpu"]
    load(file, mixed)
    assert 'deterministic = true needs "uniform"' in refused(file, *mixed, "run.deterministic=true")


def test_weights_that_say_no_share_are_refused(file: Path) -> None:
    first, second = "size = 16\n", 'path = "data/problems.jsonl"\n'
    evaluation = '\n[[evaluation.tasks]]\nkind = "jsonl"\npath = "data/problems.jsonl"\nweight = 1\n'
    text = file.read_text()

    def written(one: str, other: str, more: str = "") -> Path:
        weighted = text.replace(first, f"{first}weight = {one}\n" if one else first)
        file.write_text(weighted.replace(second, f"{second}weight = {other}\n" if other else second) + more)
        return file

    load(written("1", "3"))
    assert "another task has one: give every task its weight, or none" in refused(written("1", ""))
    assert "another task has one: give every task its weight, or none" in refused(written("0", "2"))
    assert "of 10.01 together is less than one of the 18 turns of an epoch" in refused(written("10", "0.01"))
    assert "an evaluation samples every problem equally often" in refused(written("", "", evaluation))


@pytest.mark.parametrize(
    "overrides",
    [
        ["entropy.law.kind=bang_bang", "entropy.law.delta=4.9e-3"],
        ["entropy.law.kind=pi", "entropy.law.proportional=0"],
        ["entropy.law.kind=quadratic", "entropy.law.target=4.6"],
        ["entropy.law.kind=sample_balance", "entropy.estimator.kind=nucleus", "entropy.measured=sampled"],
        ["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0.01"],
        ["entropy.estimator.kind=top_k", "entropy.estimator.k=99"],
        ["batch.filter=zero_variance", "batch.refill=1.125"],
        ["learner.minibatches=8"],
        ["learner.ranks=2", "learner.gpus=0.5", "learner.device=cpu"],
        ["learner.ranks=1", "learner.gpus=0.5"],
        ["learner.ranks=1024", "learner.rank_seconds=1", "rollout.temperature=0.01"],
        ["learner.weights.kind=lora", "learner.weights.rank=8", "learner.weights.targets=['q_proj']"],
        ["learner.weights.kind=lora", "learner.weights.rank=1", "learner.weights.publish=adapter", "learner.ranks=2"],
        ["learner.proximal=behaviour"],
        ["entropy.weight.difficulty=group", "entropy.weight.minimum=0", "entropy.weight.normalise=false"],
    ],
)
def test_settings_at_the_edge_of_sense_are_taken(file: Path, overrides: list[str]) -> None:
    load(file, overrides)


BAND = ["kind=band", "initial=0.1", "floor=0.01", "ceiling=1", "low=0.1", "high=0.2", "rate=0.1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["low=5", "high=6"], "100 tokens have an entropy of at most 4.61"),
        (["floor=2"], "outside the box floor = 2.0 … ceiling = 1.0"),
        (["high=0.05"], "low = 0.1 is not below high = 0.05"),
    ],
)
def test_a_band_that_cannot_work_is_refused(file: Path, change: list[str], expected: str) -> None:
    band = [f"entropy.law.{each}" for each in BAND]
    assert isinstance(load(file, band).entropy.law, BandLaw)
    assert expected in refused(file, *band, *(f"entropy.law.{each}" for each in change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("rank=0", "[learner.weights] rank = 0"),
        ("rank=513", "[learner.weights] rank = 513"),
        ("alpha=0", "[learner.weights] alpha = 0"),
        ("targets=[]", "[learner.weights] targets = []"),
        ("targets=['lm_head']", "names lm_head: head and embeddings are not adapted"),
        ("targets=['q_proj', 'model.embed_tokens']", "names model.embed_tokens: head and embeddings are not adapted"),
        ("targets=['all-linear']", 'write targets = "all-linear"'),
        ("targets=every", "[learner.weights] targets"),
        ("publish=both", "[learner.weights] publish"),
        ("dropout=0.1", "[learner.weights] dropout: unknown key"),
    ],
)
def test_adapters_that_cannot_be_are_refused(file: Path, change: str, expected: str) -> None:
    assert expected in refused(file, "learner.weights.kind=lora", f"learner.weights.{change}")


def test_an_empty_file_of_problems_is_named(file: Path) -> None:
    (file.parent / "data/problems.jsonl").write_text("\n")
    assert "line 15: [tasks 2] path = " in (said := refused(file))
    assert "problems.jsonl is empty" in said
