"""What `--set` may change of a run that goes on, and what it may not, because something saved depends on it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from entrostat import toml
from entrostat.config import RunConfig
from entrostat.protocol.errors import ConfigError

PROMPTS = "what was learnt of each prompt, and which comes next, is counted by the run's own prompts"
LAW = "the anchor and all that was learnt of the policy's answer belong to the law the run was started with"
OPTIMIZER = "the optimizer's state was made with it, and brings it along"
SIMULATED = "it is the policy that is simulated"

# A setting, or a section with all that is in it → why it may not change.
FIXED = {
    "run.name": "metrics, logs and shared memory are called by it",
    "run.directory": "a run goes on where --resume finds it; move its folder instead",
    "run.seed": "the prompts' order and every draw follow from it",
    "run.deterministic": "what was made so far was made the other way",
    "model": "the checkpoint holds this model's weights",
    "tasks": PROMPTS,
    "batch.shuffle": PROMPTS,
    "rollout.engine.kind": "the policy's samples came from that engine",
    "rollout.engine.skill": SIMULATED,
    "rollout.engine.learning": SIMULATED,
    "rollout.engine.median_tokens": SIMULATED,
    "rollout.engine.spread": SIMULATED,
    "rollout.temperature": "the entropy's anchor was measured at it",
    "entropy": LAW,
    "learner.weights": "the checkpoint holds what was trained",
    "learner.betas": OPTIMIZER,
    "learner.epsilon": OPTIMIZER,
    "learner.weight_decay": OPTIMIZER,
    "learner.minibatches": "the law has learnt what an order of so many optimizer steps does",
    "learner.epochs": "the law has learnt what an order of so many optimizer steps does",
}

# May change, but for a deterministic run: they decide what is computed, or when.
DECIDING = frozenset(
    {
        *("batch.prompts", "batch.filter", "batch.refill", "batch.sampling"),
        *("rollout.actors", "rollout.samples_per_prompt", "rollout.max_response_tokens", "rollout.max_staleness"),
        *("rollout.groups_in_flight", "rollout.reproducible", "rollout.lease_seconds", "rollout.gpus"),
        *("rollout.tolerance", "rollout.engine.max_sequences", "rollout.engine.memory_share"),
        *("rollout.engine.kv_cache_gib", "rollout.engine.tensor_parallel", "rollout.engine.threads"),
        *("rollout.engine.own_process", "rollout.engine.enforce_eager", "rollout.engine.max_model_tokens"),
        *("rollout.engine.tokens_per_second", "rollout.engine.update_seconds", "rollout.engine.step_seconds"),
        *("learner.device", "learner.threads", "learner.gpus", "learner.ranks", "learner.lr", "learner.schedule"),
        *("learner.warmup_steps", "learner.final_lr_ratio", "learner.gradient_clip", "learner.loss"),
        *("learner.advantages", "learner.aggregation", "learner.policy_tokens", "learner.entropy_advantage"),
        *("learner.entropy_advantage_bound", "learner.proximal", "learner.importance_cap", "learner.sequence_mask"),
        *("learner.truncated", "learner.truncation_penalty", "learner.kl_coefficient", "learner.microbatch_tokens"),
        *("learner.packing", "learner.head_chunk_tokens", "learner.gradient_checkpointing", "learner.probe_sequences"),
        *("learner.measure_balance", "learner.transport"),
        *("checkpoint.every_steps", "evaluation.every_steps", "evaluation.samples", "evaluation.temperature"),
        *("evaluation.reproducible", "evaluation.tasks"),
    }
)

# May change in every run.
FREE = frozenset(
    {
        *("run.steps", "run.stall_seconds", "run.restarts", "run.record_samples"),
        *("rollout.drain_seconds", "rollout.max_actors"),
        *("verifier.processes", "verifier.deadline_seconds", "verifier.alarm_share"),
        *("learner.rank_seconds", "learner.drift_alarm", "learner.drift_stop"),
        *(
            "checkpoint.keep",
            "evaluation.k",
            "monitor.host",
            "monitor.port",
            "monitor.sinks",
            "report.samples_per_step",
        ),
    }
)

AGAIN = (
    "the recorded steps since the checkpoint are trained again first, and would lead to other weights; with --set "
    "run.record_samples=false too, the run goes on from the checkpoint itself"
)
EXACT = "with run.deterministic = true a resumed run must equal an unbroken one"


def check(before: RunConfig, after: RunConfig, run: str) -> None:
    """Sees that a run begun with `before` can go on with `after`.

    Raises:
        ConfigError: it can't; names every setting that would have to stay, its values, and why.
    """
    refused = []
    recorded = before.run.record_samples and after.run.record_samples
    for place, old, new in changes(msgspec.to_builtins(before), msgspec.to_builtins(after)):
        reason = why_not(place, before)
        if not reason and recorded and place.startswith("learner.") and entry(place, DECIDING):
            reason = AGAIN
        if reason:
            refused.append(f"  {place} is {old}, and can't become {new}: {reason}")
    if refused:
        count = "one setting" if len(refused) == 1 else f"{len(refused)} settings"
        raise ConfigError(
            f"{run} can't go on with {count} changed; leave out the --set, or begin another run\n" + "\n".join(refused)
        )


def why_not(place: str, config: RunConfig) -> str:
    """Why the setting at `place` may not change in a run of `config`; empty where it may.

    Raises:
        ConfigError: nothing is known of the setting.
    """
    if listed := entry(place, FIXED):
        return FIXED[listed]
    if entry(place, DECIDING):
        return EXACT if config.run.deterministic else ""
    if place == "run.steps" and config.run.deterministic and config.learner.schedule != "constant":
        return f"{EXACT}, and the {config.learner.schedule} schedule of learner.lr ends with the last step"
    if entry(place, FREE):
        return ""
    raise ConfigError(f"whether {place} may change in a run that goes on is not known: leave out the --set")


def entry(place: str, table: frozenset[str] | dict[str, str]) -> str:
    """The table's entry that a setting falls under: its own, or that of a section it stands in; empty where none."""
    parts = place.split(".")
    return next((key for end in range(len(parts), 0, -1) if (key := ".".join(parts[:end])) in table), "")


def changes(before: Any, after: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two tables differ, and each one's value there as TOML writes it."""
    if before == after:
        return
    inside = f"{place}." if place else ""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.get("kind") != after.get("kind"):  # the other keys are the kinds' own
            before, after = {"kind": before.get("kind")}, {"kind": after.get("kind")}
        for key in {**before, **after}:
            yield from changes(before.get(key), after.get(key), f"{inside}{key}")
    elif _is_tables(before) and _is_tables(after) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from changes(old, new, f"{inside}{number}")
    else:
        yield place, _shown(before), _shown(after)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, dict) for item in value)


def _shown(value: Any) -> str:
    if value is None:
        return "left out"
    return f"a list of {len(value)}" if _is_tables(value) else toml.show(value)
