"""Every Prometheus metric, as one table, and the endpoint each process serves it on.

No metric decides anything. Each process has a registry of its own, so that a process that dies takes its series along.
Base units, ratios 0–1, small known label sets, seeded to 0 where the labels are known beforehand.
"""

import json
import time
from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import msgspec
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from entrostat.protocol.endpoint import Endpoint, Page
from entrostat.protocol.messages import STATUSES, PhaseSeconds, Waits
from entrostat.protocol.scaling import REFUSED, ScaleGate

# A counter's `_created` series are noise in every query.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves this one untyped

Station = Literal["rollout", "controller", "learner", "buffer"]

OUTCOMES = ("trained", "filtered", "expired", "returned", "stale", "lost", "rewound")
PHASES = PhaseSeconds.__struct_fields__
WAITS: tuple[str, ...] = Waits.__struct_fields__
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metric(msgspec.Struct, frozen=True):
    """One row of the table. `labels` maps a label's name to its known values; `()` leaves them open."""

    name: str
    station: Station
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    buckets: tuple[float, ...] = ()


def _row(station: Station, kind: Literal["counter", "gauge", "histogram"], name: str, help: str, **more: Any) -> Metric:
    return Metric(f"entrostat_{name}", station, kind, help, **more)


# ── rollout actors ───────────────────────────────────────────────────────────────────────────────────────────────────
ROLLOUT_TOKENS = _row("rollout", "counter", "rollout_tokens_total", "Response tokens drawn.")
ROLLOUT_SAMPLES = _row(
    "rollout", "counter", "rollout_samples_total", "Samples judged, by status.", labels=(("status", STATUSES),)
)
ROLLOUT_GROUP_SECONDS = _row(
    "rollout", "histogram", "rollout_group_seconds", "From a lease to its finished group.", buckets=SECONDS
)
ROLLOUT_VERSION = _row("rollout", "gauge", "rollout_policy_step", "Step of the policy served.")
ROLLOUT_RUNNING = _row("rollout", "gauge", "rollout_running_groups", "Groups being sampled.")
ROLLOUT_UPDATES = _row(
    "rollout",
    "counter",
    "rollout_weight_updates_total",
    "Weight updates, by outcome.",
    labels=(("outcome", ("served", "refused")),),
)
ROLLOUT_UPDATE_SECONDS = _row(
    "rollout", "histogram", "rollout_weight_update_seconds", "A weight update, probe included.", buckets=SECONDS
)
ROLLOUT_MISMATCH = _row(
    "rollout", "gauge", "rollout_mismatch_nats", "Largest probe difference between engine and learner, last update."
)
VERIFY_SECONDS = _row("rollout", "histogram", "verify_seconds", "Judging one response.", buckets=SECONDS)
VERIFY_ALARMS = _row(
    "rollout",
    "counter",
    "verify_alarms_total",
    "Alarms: too many responses of a batch not judged on their content (failures), or long nothing but rewards of 0.",
    labels=(("reason", ("failures", "zeros")),),
)
VERIFY_FAILURES = _row(
    "rollout", "gauge", "verify_failure_ratio", "Share of the last batch that was not judged on its content."
)
VERIFY_ZEROS = _row(
    "rollout", "gauge", "verify_zero_rewards", "Verdicts in a row with a reward of 0, as of the last batch."
)
VERIFY_REPLACED = _row(
    "rollout",
    "counter",
    "verify_processes_replaced_total",
    "Verifier processes that hung, crashed or grew too large and were replaced.",
    labels=(("process", ("worker", "server")),),
)

# ── controller ───────────────────────────────────────────────────────────────────────────────────────────────────────
LEASES_GRANTED = _row("controller", "counter", "leases_granted_total", "Leases granted.")
LEASES_ENDED = _row(
    "controller", "counter", "leases_ended_total", "Leases ended, by outcome.", labels=(("outcome", OUTCOMES),)
)
FILLED_UP = _row(
    "controller",
    "counter",
    "filled_up_groups_total",
    "Groups of equal rewards that were trained all the same, because the filter had left out its most.",
)
LEASES_RUNNING = _row("controller", "gauge", "leases_running", "Leases under way.")
GROUPS_READY = _row("controller", "gauge", "groups_ready", "Finished groups that wait for a batch.")
LATE_REPORTS = _row("controller", "counter", "late_reports_total", "Reports of leases that had ended.")
FENCED_PULSES = _row("controller", "counter", "fenced_pulses_total", "Messages of a slot's earlier life, refused.")
STALENESS = _row(
    "controller",
    "histogram",
    "staleness_versions",
    "Age of a group when ordered, in versions.",
    buckets=(0, 1, 2, 4, 8, 16),
)
COEFFICIENT = _row("controller", "gauge", "coefficient", "Global entropy coefficient.")
SAMPLE_BALANCE = _row(
    "controller", "gauge", "sample_balance", "Weight of positive samples' losses against negative ones', -1 to 1."
)
TARGET = _row("controller", "gauge", "target_entropy_nats", "Target of the control law; NaN where it has none.")
ENTROPY = _row(
    "controller",
    "gauge",
    "entropy_nats",
    "Entropy per response token, by estimator: of the current policy (learner), or of those that drew (actors).",
    labels=(("estimator", ()), ("policy", ("current", "behaviour"))),
)
MEASURED = _row(
    "controller",
    "gauge",
    "measured_entropy_nats",
    "What the control law was told last: of the current policy, at the levels' mix of the first orders.",
    labels=(("estimator", ()),),
)
LAW_FROZEN = _row("controller", "counter", "law_frozen_total", "Measurements the control law refused.")
REWARD = _row("controller", "gauge", "reward", "Mean reward of all groups completed for the last order.")
PASS_RATE = _row(
    "controller", "gauge", "pass_ratio", "Share of correct samples of all groups completed for the last order."
)
ACTORS = _row("controller", "gauge", "actors", "Rollout actors heard from within a lease's deadline.")
WAITING = _row(
    "controller",
    "counter",
    "learner_waiting_seconds_total",
    "How long the learner waited, by what for.",
    labels=(("cause", WAITS),),
)
STEP_AGE = _row(
    "controller", "gauge", "step_age_seconds", "Since the last optimizer step, or since the controller started."
)
STALL_LIMIT = _row(
    "controller", "gauge", "stall_limit_seconds", "After so long without progress the run ends: run.stall_seconds."
)
WANTED_ACTORS = _row("controller", "gauge", "wanted_actors", "Rollout actors that there should be.")
HTTP_REFUSED = _row(
    "controller",
    "counter",
    "http_refused_total",
    "Requests for a change that were refused, by reason.",
    labels=(("reason", REFUSED),),
)

# ── learner ──────────────────────────────────────────────────────────────────────────────────────────────────────────
STEPS = _row("learner", "counter", "learner_steps_total", "Optimizer steps.")
STEP_SECONDS = _row(
    "learner",
    "counter",
    "learner_seconds_total",
    "Where the learner's time went.",
    labels=(("phase", PHASES),),
)
LOSS = _row("learner", "gauge", "learner_loss", "Loss of the last step.")
GRADIENT_NORM = _row("learner", "gauge", "learner_gradient_norm", "Gradient norm of the last step, before clipping.")
CLIP_SHARE = _row("learner", "gauge", "learner_clip_ratio", "Share of tokens whose ratio was clipped.")
LEARNING_RATE = _row("learner", "gauge", "learner_learning_rate", "Learning rate of the last step.")
CLAMPED_MASS = _row("learner", "gauge", "learner_clamped_mass_ratio", "Probability of the tokens the clamp drops.")
DRIFT = _row("learner", "gauge", "learner_drift_nats", "Mean |log π − log μ| on the tokens of the last order.")
DRIFT_MAX = _row("learner", "gauge", "learner_drift_max_nats", "Largest |log π − log μ| on the same tokens.")
DRIFT_KL = _row("learner", "gauge", "learner_drift_kl_nats", "KL(μ ‖ π) on the same tokens, by the k3 estimator.")
FRESH_DRIFT = _row(
    "learner",
    "gauge",
    "learner_fresh_drift_nats",
    "Mean |log π − log μ| on those that the version trained from drew itself; NaN where there are none.",
)
LEARNER_TOKENS = _row("learner", "counter", "learner_tokens_total", "Response tokens trained on.")
PADDING = _row("learner", "gauge", "learner_padding_ratio", "Share of padding in the last step's micro-batches.")
CHECKPOINT_SECONDS = _row(
    "learner", "histogram", "learner_checkpoint_seconds", "From a checkpoint's copy to its commit.", buckets=SECONDS
)
LAST_STEP = _row("learner", "gauge", "learner_last_step_timestamp_seconds", "When the last step ended, Unix time.")

# ── sample buffer ────────────────────────────────────────────────────────────────────────────────────────────────────
BUFFER_GROUPS = _row("buffer", "gauge", "buffer_groups", "Groups held.")
BUFFER_BYTES = _row("buffer", "gauge", "buffer_bytes", "Bytes held.")

TABLE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Exporter:
    """A process's metrics and their endpoint: `/metrics`, `/healthz` and, for the controller, `/targets` and `/scale`.

    Args:
        station: whose rows of the table to register.
        host: the address to listen on; loopback unless a deployment says otherwise.
        port: 0 picks a free one, see `port`.
        labels: constant labels of this process, such as its slot.
        targets: for `/targets`, the scrape groups in Prometheus' HTTP service-discovery form.
        scale: for `POST /scale`.

    Raises:
        ResourceError: the port is taken.
    """

    def __init__(
        self,
        station: Station,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        labels: dict[str, str] | None = None,
        targets: Callable[[], list[dict[str, Any]]] | None = None,
        scale: ScaleGate | None = None,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._labels = labels or {}
        self._metrics = {row.name: self._register(row) for row in TABLE if row.station == station}
        self._alive = time.monotonic()
        self._targets = targets
        self._gate = scale
        self._endpoint = Endpoint(host, port, self._get, self._post)
        self.port = self._endpoint.port

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Counts `amount` up."""
        self._child(metric, labels).inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._child(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Enters a value in a histogram."""
        self._child(metric, labels).observe(value)

    def close(self) -> None:
        """Frees the port."""
        self._endpoint.close()

    def _register(self, row: Metric) -> Counter | Gauge | Histogram:
        names = (*self._labels, *(name for name, _ in row.labels))
        options: dict[str, Any] = {"labelnames": names, "registry": self.registry}
        metric: Counter | Gauge | Histogram
        if row.kind == "counter":
            metric = Counter(row.name, row.help, **options)
        elif row.kind == "gauge":
            metric = Gauge(row.name, row.help, **options)
        else:
            metric = Histogram(row.name, row.help, buckets=row.buckets, **options)
        for values in product(*(values for _, values in row.labels)) if names else ():
            metric.labels(*self._labels.values(), *values)
        return metric

    def _child(self, metric: Metric, labels: dict[str, str]) -> Any:
        found = self._metrics[metric.name]
        return found.labels(**self._labels, **labels) if self._labels or labels else found

    def _get(self, path: str) -> Page:
        if path == "/metrics":
            return Page(200, prometheus_client.CONTENT_TYPE_LATEST, generate_latest(self.registry))
        if path == "/healthz":
            return Page(200, "text/plain", b"ok\n")
        if path == "/targets" and self._targets is not None:
            return Page(200, "application/json", json.dumps(self._targets()).encode())
        return Page(404, "text/plain", b"there is /metrics and /healthz here\n")

    def _post(self, path: str, authorization: str | None, body: bytes | None) -> Page:
        if path != "/scale" or self._gate is None:
            return Page(404, "text/plain", b"nothing can be changed here\n")
        # A body that was not read is judged as an empty one: who has no token learns nothing of it.
        answer = self._gate.answer(authorization, body or b"")
        if answer.refused is not None:
            self.add(HTTP_REFUSED, reason=answer.refused)
        return Page(answer.code, "application/json" if answer.refused is None else "text/plain", answer.body)
