from pathlib import Path

import pytest

from entrostat.config import load
from entrostat.explain import explain
from entrostat.parameters import parameter_count
from tests.made_config import small_file


def test_the_quickstart_is_told_in_the_one_vocabulary(quickstart: Path) -> None:
    said = " ".join(explain(load(quickstart, ["run.steps=120", "rollout.max_staleness=1"])).split())
    assert "together 512 prompts" in said
    assert "samples 512: a group of 16 for each prompt" in said
    assert "tokens at most 40,960: 80 in a response" in said
    assert "epochs 7.50" in said
    assert "optimizer steps 120" in said
    assert "most versions 1" in said
    assert "thermostat: measures H_0 over 3 steps" in said


def test_a_changed_setting_changes_what_is_said(quickstart: Path) -> None:
    said = explain(
        load(quickstart, ["rollout.max_staleness=0", "learner.truncated=penalise", "entropy.law.kind=fixed"])
    )
    assert "on-policy" in said
    assert "their reward is lowered by 0.5" in said
    assert "no entropy control" in said


def test_what_is_not_on_this_machine_is_said_to_be_missing(repository: Path) -> None:
    said = explain(load(repository / "deploy/runs/gsm8k-qwen3-0.6b.toml"))
    assert "the model Qwen/Qwen3-0.6B is not in a folder here" in said
    assert "gsm8k_train.jsonl: not on this machine" in said
    assert "a run would end at once, with exit code 2: " in said
    assert "ipc: the engine reads the learner's memory" in said


def test_a_trial_run_too_short_for_its_settings_is_allowed_and_says_so(quickstart: Path) -> None:
    settings = ["run.steps=3", "learner.warmup_steps=5", "evaluation.every_steps=10"]
    said = explain(load(quickstart, settings))
    for note in ("3 orders measure H_0: in 3 steps", "lr warms up for 5 steps", "an evaluation every 10 steps"):
        assert note in said
    assert "measure H_0: in" not in explain(load(quickstart))


def test_a_release_is_said_with_the_steps_it_takes(quickstart: Path) -> None:
    settings = ["entropy.law.release_after=60", "entropy.law.release_orders=30"]
    said = " ".join(explain(load(quickstart, settings)).split())
    assert "from step 63 to 93 the target falls to 0.2 · H_0" in said
    assert "the target falls" not in explain(load(quickstart))


def test_too_few_groups_in_flight_are_worth_knowing(quickstart: Path) -> None:
    assert "4 rounds a step" in explain(load(quickstart, ["rollout.groups_in_flight=8"]))
    assert "rounds a step" not in explain(load(quickstart, ["rollout.groups_in_flight=32"]))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 16), ("bfloat16", 18)])
def test_what_training_holds_is_counted_by_the_parameter(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, size: int
) -> None:
    monkeypatch.setattr("entrostat.explain.parameter_count", lambda _: 1 << 30)
    said = explain(load(quickstart, [f"model.dtype={dtype}"]))
    assert f"AdamW's moments {size}.0 GiB" in said


LORA = ["learner.weights.kind=lora", "learner.weights.rank=4", "learner.weights.alpha=8"]


def test_adapters_are_said_with_their_numbers_and_how_they_are_published(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrostat.explain.adapter_count", lambda *_: 1_234_567)
    said = " ".join(explain(load(quickstart, LORA)).split())
    assert (
        "trained 1,234,567 numbers in low-rank adapters (LoRA) of rank 4, α = 8, beside all linear layers; published "
        "merged into whole weights" in said
    )
    chosen = ["learner.weights.targets=['q_proj', 'v_proj']", "learner.weights.publish=adapter"]
    said = " ".join(explain(load(quickstart, [*LORA, *chosen])).split())
    assert "beside q_proj, v_proj; published as an adapter for vLLM" in said
    assert "trained all weights" in " ".join(explain(load(quickstart)).split())


def test_what_can_not_be_counted_is_not_said_of_adapters(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrostat.explain.adapter_count", lambda *_: 0)
    assert "trained low-rank adapters (LoRA)" in " ".join(explain(load(quickstart, LORA)).split())


@pytest.mark.parametrize(
    ("publish", "dtype", "weights", "shared"),
    [
        # 2^30 numbers of 4 or 2 bytes, and 2^26 in adapters of which 16 or 18 bytes are kept; three versions are held.
        ("merged", "float32", "4.0 GiB; with gradients and AdamW's moments 5.0 GiB", "12.0 GiB"),
        ("adapter", "float32", "4.0 GiB; with gradients and AdamW's moments 5.0 GiB", "768 MiB"),
        ("adapter", "bfloat16", "2.0 GiB; with gradients and AdamW's moments 3.1 GiB", "384 MiB"),
    ],
)
def test_what_training_adapters_holds_is_the_frozen_weights_and_theirs_in_training(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch, publish: str, dtype: str, weights: str, shared: str
) -> None:
    monkeypatch.setattr("entrostat.explain.parameter_count", lambda _: 1 << 30)
    monkeypatch.setattr("entrostat.explain.adapter_count", lambda *_: 1 << 26)
    settings = [*LORA, f"learner.weights.publish={publish}", f"model.dtype={dtype}"]
    said = " ".join(explain(load(quickstart, settings)).split())
    assert f"weights {weights} " in said
    assert f"shared memory {shared} for weights on their way" in said


def test_the_reference_beside_adapters_costs_no_memory(quickstart: Path) -> None:
    penalty = ["learner.kl_coefficient=0.1"]
    assert "the same without its adapters" in explain(load(quickstart, [*LORA, *penalty]))
    assert "which stays in memory" in explain(load(quickstart, penalty))


def test_ranks_are_said_where_there_are_several(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrostat.explain.parameter_count", lambda _: 1 << 30)
    said = " ".join(explain(load(quickstart, ["learner.ranks=4", "learner.rank_seconds=60"])).split())
    assert "ranks 4 processes make it together, each with its part of the weights" in said
    assert "waits for another at most 60 s" in said
    assert "AdamW's moments 16.0 GiB, 4.0 GiB on each of 4 ranks" in said
    assert "ranks" not in explain(load(quickstart))


def test_what_the_evaluation_will_tell_depends_on_its_samples(quickstart: Path) -> None:
    assert "pass@k and maj@k, k = 1, 2, 4, 8, 16" in explain(load(quickstart, ["evaluation.samples=16"]))
    assert "pass@k and maj@k, k = 1, 4" in explain(load(quickstart, ["evaluation.samples=6", "evaluation.k=[1, 4]"]))


def test_an_engine_that_leaves_the_learner_no_memory_is_worth_knowing(repository: Path) -> None:
    file = repository / "deploy/runs/gsm8k-qwen3-0.6b.toml"
    assert "lower memory_share" in explain(load(file, ["rollout.engine.memory_share=0.9"]))
    assert "lower memory_share" not in explain(load(file))


def test_parameters_are_counted_from_the_files_headers(starter: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(starter / "model.safetensors", framework="numpy") as opened:
        counted = sum(opened.get_tensor(name).size for name in opened.keys())  # noqa: SIM118 — it is no dict
    assert parameter_count(str(starter)) == counted > 0
    assert parameter_count(str(tmp_path)) == 0
    (tmp_path / "model.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0not json!")
    assert parameter_count(str(tmp_path)) == 0


PPO = ["learner.loss.kind=ppo_clip"]
SAID = [
    (["entropy.estimator.kind=top_k", "entropy.estimator.k=30"], "entropy over the 30 most likely tokens"),
    (["entropy.estimator.kind=nucleus"], "the fewest tokens that hold 80% of the probability"),
    (["entropy.estimator.kind=full"], "H: entropy over the whole vocabulary"),
    (["entropy.tokens.kind=top_entropy"], "on the 20% of an order's response tokens with the highest entropy"),
    (["entropy.tokens.kind=smoothed"], "outside 0 … 2 times the usual entropy loses 0.05 nats"),
    (["entropy.measured=full"], "H over the whole vocabulary, whatever the bonus is on"),
    (["entropy.measured=sampled"], "the mean −log π of the drawn tokens"),
    (["entropy.law.kind=bang_bang"], "bang-bang (Skywork-OR1): 0.0001 up below 0.7 · H_0"),
    (["entropy.law.kind=bang_bang", "entropy.law.target=0.2"], "0.0001 up below 0.2 nats"),
    (["entropy.law.kind=pi"], "pi: 1 × (H* − H) + 0.01 × its sum, H* = 0.7 · H_0, within 0 … 1"),
    (["entropy.law.kind=quadratic"], "quadratic (SIREN): a coefficient of 0.01 × (H* − H), H* = 1 · H_0"),
    (["entropy.law.kind=sample_balance"], "sample balance (EntroPIC): no bonus"),
    (["entropy.law.kind=pi", "entropy.law.anchor=1.5"], "anchor = 1.5 sets the target above the entropy"),
    (["entropy.weight.difficulty=group"], "of the group's own pass rate, at once (AER)"),
    (["entropy.weight.normalise=false"], "raw: the bonus as a whole fades"),
    (["entropy.weight.minimum=0.1"], "least weight 0.1 of the largest"),
    (["entropy.weight.cap=2"], "largest weight 2"),
    (["entropy.weight.all_wrong_share=0"], "all-wrong groups get no bonus"),
    (["entropy.weight.all_wrong_share=1"], "all-wrong groups get all of their bonus"),
    (["batch.sampling.kind=mixed_results"], "by how likely the 16 samples of a group differ in reward"),
    (["batch.sampling.kind=mixed_results", "batch.sampling.floor=0.25"], "in 25% of its turns at 0 or 1"),
    (["batch.filter=zero_variance"], "left out and others sampled: at most 3 × 32 groups for one step"),
    (["batch.filter=zero_variance"], "the newest 16 all-wrong groups at most come along for their bonus"),
    (
        ["batch.filter=zero_variance", "learner.truncated=penalise"],
        "the filter looks at rewards before truncation_penalty",
    ),
    (["learner.loss.kind=gspo"], "GSPO: one ratio for a sequence, clipped to 0.9997 … 1.0004"),
    (["learner.loss.kind=cispo"], "CISPO: the ratio is a weight of at most 1.28"),
    (["learner.loss.kind=clip_cov"], "without the gradient of a random 0.0002 of tokens, of covariance 1 … 5"),
    (["learner.loss.kind=kl_cov"], "KL-Cov: 1 × KL on the 0.002 of tokens with the highest covariance"),
    (["learner.loss.dual_clip=3"], "0.8 … 1.2; at most 3 × |A| where A < 0"),
    (["learner.advantages=centred"], "(Dr.GRPO)"),
    (["learner.advantages=leave_one_out"], "(RLOO)"),
    (["learner.aggregation=sequence_mean"], "mean over each sample's tokens, then over samples"),
    (["learner.aggregation=fixed_length"], "over the length limit"),
    (["learner.policy_tokens=0.2"], "the 20% with the highest entropy alone have a policy gradient"),
    (["learner.entropy_advantage=0.4"], "A + min(0.4 × H, |A| / 2)"),
    (["learner.minibatches=4", "learner.epochs=2"], "8 for each order: 4 minibatches, 2 times over"),
    (["learner.proximal=behaviour"], "ratio against the policy that drew the samples"),
    (["learner.importance_cap=0"], "importance weight none"),
    (["learner.importance_cap=5"], "importance weight at most 5"),
    (["learner.sequence_mask=0.1"], "|log π_prox − log μ| exceeds 0.1 nats"),
    (["learner.measure_balance=true"], "a step takes twice the time"),
]


@pytest.mark.parametrize(("overrides", "expected"), SAID)
def test_each_method_is_said_when_it_is_chosen_and_only_then(
    quickstart: Path, overrides: list[str], expected: str
) -> None:
    plain = ["entropy.estimator.kind=clamped", *PPO]
    assert expected in " ".join(explain(load(quickstart, [*plain, *overrides])).split())
    assert expected not in " ".join(explain(load(quickstart, plain)).split())


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        ([*PPO, "learner.loss.clip_high=0.28"], "clip-higher does nothing"),
        ([*PPO, "learner.loss.dual_clip=3"], "dual clip does nothing"),
        ([*PPO, "learner.loss.clip_high=0.28", "learner.loss.dual_clip=3"], "clip-higher and dual clip do nothing"),
        (["learner.loss.kind=kl_cov"], "KL-Cov's penalty does nothing"),
        (["learner.loss.kind=gspo"], "GSPO's ratio and its bounds do nothing"),
        (["learner.loss.kind=cispo"], "CISPO's ratio and its bounds do nothing"),
    ],
)
def test_what_needs_a_ratio_is_said_to_be_idle_with_one_optimizer_step(
    quickstart: Path, overrides: list[str], idle: str
) -> None:
    assert idle in explain(load(quickstart, overrides))
    for many in ("learner.minibatches=2", "learner.epochs=2", "learner.proximal=behaviour"):
        assert "the ratio is 1 everywhere" not in explain(load(quickstart, [*overrides, many]))
    assert "the ratio is 1 everywhere" not in explain(load(quickstart))


def test_how_prompts_are_drawn_is_said(quickstart: Path, tmp_path: Path) -> None:
    said = " ".join(explain(load(quickstart)).split())
    assert "turns every prompt once an epoch drawn every prompt when its turn comes" in said
    file = small_file(tmp_path)
    text = file.read_text().replace('kind = "reasoning_gym"\n', 'kind = "reasoning_gym"\nweight = 3\n')
    file.write_text(text.replace('kind = "jsonl"\n', 'kind = "jsonl"\nweight = 1\n'))
    said = " ".join(explain(load(file)).split())
    assert "by the tasks' weights: task 1 75.0%, task 2 25.0%; within a task every prompt has equally many" in said


def test_a_penalty_without_a_gradient_is_said_to_be_one(quickstart: Path) -> None:
    assert "EPO's penalty is a constant" in explain(load(quickstart, ["entropy.tokens.kind=smoothed"]))
    assert "EPO's penalty" not in explain(load(quickstart))


def test_weights_without_a_bonus_are_said_to_be_idle(quickstart: Path) -> None:
    note = "the law gives no bonus: entropy.weight"
    assert note in explain(load(quickstart, ["entropy.law.kind=sample_balance", "entropy.weight.cap=2"]))
    assert note not in explain(load(quickstart, ["entropy.weight.cap=2"]))
