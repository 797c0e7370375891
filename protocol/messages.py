"""Every message, in the order in which a sample meets them: read this file and you have the system.

Axes: `G` samples of a prompt · `T` response tokens of all of a group's samples, one after another · `P` prompt tokens.
Unless said otherwise numbers are in nats, seconds and tokens. A later message wraps an earlier one and adds to it.
"""

from typing import Literal, get_args

import msgspec

from entrostat.protocol.arrays import Float32, Int32, UInt8
from entrostat.protocol.moments import Moments


class PolicyVersion(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Which weights: `step` optimizer steps along `branch`; restoring a checkpoint starts a new branch."""

    branch: int
    step: int

    def __str__(self) -> str:
        return f"{self.branch}.{self.step}"


class Prompt(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """driver → rollout actors. One problem; `id` is dense from 0, `name` is stable between runs."""

    id: int
    name: str
    level: str  # the task's own notion of difficulty; statistics are kept by it
    task: int  # which of the run's tasks it belongs to, and so which verifier judges it
    text: str  # what the policy reads, chat template and all
    answer: str
    entry: str  # JSON: what the task's own scorer needs besides


class PromptSet(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """driver → rollout actors. Every prompt of the run; `prompts[i].id == i`."""

    prompts: tuple[Prompt, ...]


class Lease(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → rollout actor. The right to sample one prompt `samples` times until the deadline passes.

    `version` is the newest policy at the grant. It ends exactly one way; a pulse that names it renews it.
    """

    id: int
    prompt_id: int
    samples: int
    version: PolicyVersion
    seed: int
    deadline_seconds: float


FINISHED_STOP = 0
FINISHED_LENGTH = 1


class Samples(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """engine → rollout actor. `G` responses to one prompt, one after another in flat arrays.

    `logprobs` are those the tokens were drawn with: of the processed logits, temperature included.
    Spans are rows `[sample, first token, branch, step]`: from that token on (within its sample) that version drew.
    """

    tokens: Int32  # [T]
    logprobs: Float32  # [T] nats
    lengths: Int32  # [G] tokens, sum = T
    finish: UInt8  # [G] FINISHED_STOP or FINISHED_LENGTH
    spans: Int32  # [S, 4]


class Rollout(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rollout actor's engine → its verifiers. The samples of one lease, and who drew them."""

    lease: Lease
    slot: int  # the actor's stable number
    incarnation: int  # which life of that slot
    started: PolicyVersion  # what the engine served when the first token was drawn
    prompt_tokens: Int32  # [P]
    samples: Samples
    seconds: float


Status = Literal["correct", "wrong", "unparsable", "timeout", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)


class Verdict(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """verifier process → rollout actor. What one response is worth; a failure is a reward of 0 *and* a status."""

    reward: float
    status: Status
    seconds: float
    detail: str = ""
    answer: str = ""  # what was read as the answer: equal texts are one vote; empty where nothing was


class Group(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rollout actor → sample buffer → learner. A rollout and its verdicts, in the samples' order."""

    rollout: Rollout
    verdicts: tuple[Verdict, ...]  # [G]


class GroupReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rollout actor → controller. What the controller may know of a group that lies in the buffer: no tokens."""

    lease_id: int
    prompt_id: int
    slot: int
    incarnation: int
    started: PolicyVersion
    rewards: tuple[float, ...]  # [G]
    statuses: tuple[Status, ...]  # [G]
    lengths: tuple[int, ...]  # [G] tokens
    surprise: Moments  # of −log π over the group's tokens: an unbiased, noisy cross-check of H
    truncated: int  # samples cut by the length limit


class Pulse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rollout actor → controller. An actor renews `running`, reports, hands back, and asks for `room` leases."""

    slot: int
    incarnation: int
    version: PolicyVersion
    room: int
    running: tuple[int, ...]  # lease ids
    reports: tuple[GroupReport, ...]
    returned: tuple[int, ...] = ()  # lease ids of `running` that it hands back: they are granted again at once
    number: int = 0  # counts up in one life of the actor, and tells that it had the reply before; 0: not counted
    judging: int = 0  # of `running`, those whose samples are drawn and wait for verdicts or for the buffer


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where one tensor lies in a version's flat buffer, under the name a Hugging Face checkpoint gives it."""

    name: str
    dtype: str  # torch's name without the module: "float32", "bfloat16"
    shape: tuple[int, ...]
    offset: int  # bytes, a multiple of 64
    bytes: int
    checksums: tuple[int, ...]  # xxh3-64 of its pieces, see `buckets.pieces`


class SharedFile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The flat buffer is a file in shared memory of `host`, which a reader locks (`flock`, shared) while it needs it.

    The learner writes a later version into a file that nobody holds, and renames it first: who finds another file
    under the path once it has the lock, or none, came too late.
    """

    host: str
    path: str


class CudaMemory(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The flat buffer is device memory of the learner's process, opened through CUDA IPC on the same GPU."""

    host: str
    device_uuid: str
    handle: bytes
    storage_bytes: int
    storage_offset_bytes: int
    reference_handle: bytes
    reference_offset: int
    event_handle: bytes
    event_sync: bool


class NcclGroup(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The flat buffer is broadcast once, in buckets, to all ranks of an NCCL group whose first one is the learner."""

    host: str
    port: int
    ranks: int


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A few sequences and the learner's log-probs of them: what these weights must compute, as a test.

    `logprobs[i]` belongs to the token after the i-th; each sequence of `n` tokens has `n − 1` of them.
    """

    tokens: Int32  # [sum of lengths]
    lengths: Int32  # [K]
    logprobs: Float32  # [sum of lengths − K] under this version
    previous: Float32  # [sum of lengths − K] under the version before
    tolerance: float  # largest |difference| that is still the same policy


class WeightsManifest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """learner → controller → rollout actors. A published version: where it lies, what is in it, how to check it."""

    version: PolicyVersion
    tensors: tuple[TensorSpec, ...]
    bytes: int
    checksum: int  # xxh3-64 of the tensors' checksums, in order
    location: SharedFile | CudaMemory | NcclGroup
    probe: Probe


class PulseReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → rollout actor. New leases, leases that ended without it, and the newest weights if it lacks them."""

    leases: tuple[Lease, ...]
    ended: tuple[int, ...]  # lease ids of the actor's `running` that are no longer its own
    manifest: WeightsManifest | None
    fenced: bool  # a newer incarnation holds this slot: stop


class OrderedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One group of an order and the weight of its entropy in the loss."""

    lease_id: int
    prompt_id: int
    level: str
    in_policy: bool  # False: has no advantage signal, and came along for its bonus alone; does not count in N_A
    weight: float  # w̄_q, token-weighted mean ≤ 1 over the order
    coefficient: float  # λ_q = α·w̄_q


class TrainOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → learner. Make the next optimizer step from `version` with these groups, fetched from the buffer."""

    version: PolicyVersion  # the policy the step starts from; the step makes version.step + 1
    groups: tuple[OrderedGroup, ...]
    coefficient: float  # α
    sample_balance: float  # −1…1: losses of positive samples × (1 + it), of negative ones × (1 − it); 0 changes nothing
    usual_entropy: float  # nats: the mean of what the law was told so far; NaN before the first time
    seed: int


class PhaseSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Where an optimizer step's time went in the learner's process."""

    wait: float  # for the order
    fetch: float  # groups out of the buffer, and onto the disk where they are recorded
    forward_backward: float
    optimizer: float
    publish: float  # flat buffer, checksums and probe


class LevelEntropy(msgspec.Struct, frozen=True, kw_only=True):
    """Entropies of one level's response tokens in an order, nats per token."""

    level: str
    tokens: int
    entropy: float  # H
    clamped_entropy: float  # H̃, that of the bonus
    sampled_entropy: float  # mean −log π of the drawn tokens


class BalanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What calibration needs: inner products of the step's two gradients in the optimizer's metric `P = 1/(√v̂ + ε)`."""

    policy_push: float  # ⟨P ∇L_policy, ∇mean(w̄ H̃)⟩: how the policy term moves the entropy
    bonus_push: float  # ⟨P ∇mean(w̄ H̃), ∇mean(w̄ H̃)⟩: how a coefficient of 1 would


class FreshDrift(msgspec.Struct, frozen=True, kw_only=True):
    """log π against log μ on the tokens of samples that the measured version itself drew, from their first to the last.

    No policy drift is in it: it is the engine's mismatch on samples.
    """

    tokens: int
    mean: float  # |log π − log μ|, nats
    max: float
    kl: float  # k3 of KL(μ ‖ π), nats per token


class StepReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """learner → controller → metrics. One optimizer step: what was measured before it, what it did.

    Entropies are token means over all response tokens of the order, of the *current* policy before the update
    (`measured`), at the rollout temperature, exact over the vocabulary.
    """

    measured: PolicyVersion
    version: PolicyVersion  # made by the step
    entropy: float  # H
    clamped_entropy: float  # H̃, that of the bonus, whatever its estimator
    sampled_entropy: float  # mean −log π of the drawn tokens
    clamped_mass: float  # probability of the tokens outside H̃'s set
    levels: tuple[LevelEntropy, ...]  # the same entropies, level by level
    ages: tuple[float, ...]  # H̃ of groups begun 0, 1, … versions before `measured`; NaN where there are none
    response_tokens: int
    policy_tokens: int  # those that count in the policy term
    loss: float
    policy_loss: float
    entropy_bonus: float  # α · mean(w̄ H̃), as added to the objective
    kl_nats: float  # to the reference policy; 0 without one
    gradient_norm: float
    learning_rate: float
    clip_share: float
    truncated_weight_share: float  # tokens whose importance weight π_prox/μ was cut at its cap
    masked_share: float  # samples that were rejected: truncated, or too far from what drew them
    optimizer_steps: int  # minibatches × epochs
    balance: BalanceReport | None  # where `learner.measure_balance` asks for it
    drift_mean: float  # mean |log π − log μ| on sampled tokens: mismatch and policy drift together
    drift_max: float
    drift_kl: float  # k3 of KL(μ ‖ π), nats per token
    fresh: FreshDrift | None  # None where older versions had a part in every sample
    padding_share: float
    phases: PhaseSeconds


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """learner → driver. A step that was made, and the weights it published; the driver passes each on."""

    report: StepReport
    manifest: WeightsManifest


class GroupsMissing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """learner → controller. The order can't be trained: the buffer no longer holds these groups."""

    version: PolicyVersion
    lease_ids: tuple[int, ...]


class LeaseCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many leases were granted and how each ended; `granted` is the sum of all the others."""

    granted: int = 0
    running: int = 0
    ready: int = 0  # its group lies in the buffer
    ordered: int = 0  # in the order under way
    trained: int = 0
    filtered: int = 0  # without an advantage signal, left out of every order
    expired: int = 0  # deadline passed; the prompt is leased again
    returned: int = 0  # handed back by an actor that drains; the prompt is leased again
    stale: int = 0  # too old when a batch was made; the prompt is leased again
    lost: int = 0  # the buffer lost its group; the prompt is leased again
    rewound: int = 0  # voided by a restored checkpoint


class ControllerView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → driver. What people look at; nothing is decided by it."""

    version: PolicyVersion
    coefficient: float
    sample_balance: float
    measured: Literal["full", "clamped", "top_k", "nucleus", "sampled"]  # the estimator that drives the law
    measured_entropy: (
        float  # what the law was told last, at the anchor's mix of levels, nats; NaN before the first time
    )
    target: float | None  # nats; None for a law without one, or before the anchor is known
    low: float | None  # a band's edges, nats
    high: float | None
    initial_entropy: float | None  # H_0
    frozen_updates: int  # measurements the law refused
    brake: bool
    ceiling_orders: int  # in a row with a thermostat's coefficient at its ceiling
    leases: LeaseCounts
    late_reports: int
    passed_over: int  # prompts' turns at which they were not drawn, see `MixedResults`; since the run began
    actors: int  # seen within the last lease deadline
    wanted_actors: int  # how many there should be: the configuration's, or what the run was scaled to since
    judging: int  # running leases whose samples are drawn and wait for verdicts or for the buffer
    term: int  # which life of the controller in this branch
    staleness: tuple[int, ...]  # groups of the last order by age in versions: [max_staleness + 1] or longer
    difficulty: tuple[int, ...]  # prompts by expected pass rate, ten equal bins
    reward: float  # mean over the samples of the last order
    pass_rate: float  # share of correct samples, the same
    statuses: tuple[int, int, int, int, int]  # verdicts of the last order, in `Status`'s order
    actor_entropy: float  # mean −log μ of the last order, μ the policies that drew it, nats
    actor_ages: tuple[float, ...]  # the same of the ordered groups by age, along `staleness`; NaN where there are none
    response_tokens: int
    truncated: int


class EvaluationRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """driver → rollout actor. Sample each prompt so often under one unchanging version."""

    prompts: tuple[Prompt, ...]
    samples: int
    temperature: float
    seed: int
    reproducible: bool = True  # each prompt's samples follow from the seed, whatever else the engine has to do


NO_VOTE = -1  # a sample without an answer
NO_ANSWERS = -2  # a sample of a task whose verifier names no answers at all


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rollout actor → driver. What came of each of `samples` samples of each prompt, in the request's order.

    Equal votes are equal answers to one prompt: 0 is every correct one, 1 and above are the wrong ones.
    """

    version: PolicyVersion
    prompts: str  # a digest of them, in order: equal ones can be compared prompt by prompt
    levels: tuple[str, ...]  # [prompts]
    samples: int
    statuses: UInt8  # [prompts, samples] places in STATUSES
    rewards: Float32  # [prompts, samples]
    votes: Int32  # [prompts, samples] or NO_VOTE, or NO_ANSWERS
    lengths: Int32  # [prompts, samples] tokens
    finish: UInt8  # [prompts, samples] FINISHED_STOP or FINISHED_LENGTH
    surprise: tuple[Moments, ...]  # [prompts] of −log π over the prompt's tokens
    seconds: float


class ActorView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rollout actor → driver. What people look at."""

    slot: int
    incarnation: int
    version: PolicyVersion
    tokens: int  # response tokens drawn since the actor started
    requests: int  # leases being sampled now
    updates: int
    refused_updates: int
    update_seconds: float  # the last one, probe included
    mismatch: float  # nats: the largest probe difference of the version served …
    max_mismatch: float  # … and of any served so far
    engine_seconds: float  # until the engine was up
    metrics_port: int
    host: str = ""
    process: int = 0  # id on that host
    turn_seconds: float = 0.0  # since the loop that owns the engine last came round
    held: int = 0  # leases, judged ones included
    draining: bool = False


class RunningNow(msgspec.Struct, frozen=True, kw_only=True):
    """A lease under way, for people."""

    id: int
    prompt_id: int
    slot: int
    incarnation: int
    version: PolicyVersion  # the newest at its grant
    age_seconds: float
    left_seconds: float  # until its deadline


class HeardActor(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout actor as the controller knows it, for people."""

    slot: int
    incarnation: int
    silent_seconds: float  # since its last pulse
    judging: int


class Standing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → driver. Who holds what, for the report of a stall."""

    version: PolicyVersion  # the next order starts from it
    newest: PolicyVersion  # that actors may serve
    needed: int  # groups of an order
    ordered: int  # groups of the order under way; 0 without one
    leases: LeaseCounts
    running: tuple[RunningNow, ...]
    actors: tuple[HeardActor, ...]


class Waits(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller ↔ driver. For how long the learner has waited, seconds, by what it waited for."""

    sampling: float = 0.0  # rollout actors draw
    verifying: float = 0.0  # what the order lacks is drawn, and waits for verdicts or for the buffer
    weights: float = 0.0  # no lease is under way or can be granted: the actors have yet to serve newer weights
    no_actors: float = 0.0  # none was heard from within a lease's deadline
    checkpoint: float = 0.0
    evaluation: float = 0.0
    other: float = 0.0


class Stacks(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """any station → driver. Where it runs, and what each of its threads does."""

    host: str
    process: int  # id on that host
    text: str
