"""One table, one endpoint per process."""

import json
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from entrostat.protocol import metrics
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.metrics import TABLE, Exporter


def read(exporter: Exporter, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def values(exporter: Exporter) -> dict[str, float]:
    """Sample name with labels → value."""
    found = {}
    for family in text_string_to_metric_families(read(exporter, "/metrics")):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_metric_is_named_as_prometheus_wants(row: metrics.Metric) -> None:
    assert row.name.startswith("entrostat_")
    assert row.name.endswith("_total") == (row.kind == "counter")
    assert row.help.endswith(".")
    assert bool(row.buckets) == (row.kind == "histogram")


def test_every_name_stands_in_the_table_once() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_counters_with_known_labels_start_at_zero() -> None:
    exporter = Exporter("rollout", labels={"actor": "3"})
    assert values(exporter)["entrostat_rollout_samples_total{actor=3,status=timeout}"] == 0.0
    exporter.close()


def test_what_is_counted_is_what_is_scraped() -> None:
    exporter = Exporter("rollout", labels={"actor": "3"})
    exporter.add(metrics.ROLLOUT_TOKENS, 512)
    exporter.add(metrics.ROLLOUT_SAMPLES, status="wrong")
    exporter.observe(metrics.VERIFY_SECONDS, 0.5)
    scraped = values(exporter)
    assert scraped["entrostat_rollout_tokens_total{actor=3}"] == 512.0
    assert scraped["entrostat_rollout_samples_total{actor=3,status=wrong}"] == 1.0
    assert scraped["entrostat_verify_seconds_sum{actor=3}"] == 0.5
    assert not [name for name in scraped if "_created" in name]
    exporter.close()


def test_a_process_serves_only_its_own_station() -> None:
    exporter = Exporter("learner")
    assert "entrostat_learner_steps_total{}" in values(exporter)
    assert not [name for name in values(exporter) if "rollout" in name]
    with pytest.raises(KeyError):
        exporter.add(metrics.ROLLOUT_TOKENS)
    exporter.close()


def test_targets_are_listed_in_service_discovery_form() -> None:
    listed = [{"targets": ["127.0.0.1:1"], "labels": {"station": "learner"}}]
    exporter = Exporter("controller", targets=lambda: listed)
    assert json.loads(read(exporter, "/targets")) == listed
    assert read(exporter, "/healthz") == "ok\n"
    exporter.close()


def test_an_unknown_path_is_not_found() -> None:
    exporter = Exporter("learner")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(exporter, "/targets")
    exporter.close()


def test_a_taken_port_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match=r"monitor.*port"):
            Exporter("learner", port=taken.getsockname()[1])
