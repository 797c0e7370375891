"""The samples people read: spread over the groups, with the numbers that belong to them."""

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.samples import SampleRecord, chosen_samples, write_samples
from entrostat.learner.trainer import Trainer
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import PolicyVersion
from tests.tiny_policy import PROMPTS, WORDS, make_group, make_order, make_policy, make_prompts, make_stations


@given(st.lists(st.integers(1, 6), min_size=1, max_size=10), st.integers(1, 80))
@settings(max_examples=60)
def test_samples_are_spread_over_the_groups(sizes: list[int], count: int) -> None:
    chosen = chosen_samples(sizes, count)
    assert len(chosen) == len(set(chosen)) == min(count, sum(sizes))
    assert all(sample < sizes[group] for group, sample in chosen)
    if count >= len(sizes):
        assert {group for group, _ in chosen} == set(range(len(sizes)))


def test_a_step_writes_its_samples_for_people(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = make_policy(tmp_path / "policy")
    stations = make_stations(model, tmp_path, samples_per_step=5)
    trainer = Trainer(stations, make_prompts(), PolicyVersion(branch=0, step=0), shared_memory=tmp_path)
    groups = [make_group(0), make_group(2, rewards=(1.0, 0.0), truncated=1)]
    report = trainer.train(make_order(groups, trainer.version, 0.2), groups, wait=0.0, fetch=0.0).report
    lines = (tmp_path / "samples" / "step-1.jsonl").read_bytes()
    records = msgspec.json.Decoder(SampleRecord).decode_lines(lines)
    assert len(records) == 5
    assert {record.prompt for record in records} == {PROMPTS[0], PROMPTS[2]}
    last = records[-1]
    lengths = groups[1].rollout.samples.lengths
    assert (last.tokens, last.reward, last.status, last.truncated) == (int(lengths[1]), 0.0, "wrong", False)
    assert records[-2].truncated
    ids = groups[1].rollout.samples.tokens[lengths[0] :]
    assert last.response.split() == [WORDS[token] for token in ids]
    assert (last.coefficient, last.version, last.name) == (0.2, "0.0", "sum/2")
    assert last.entropy_nats == pytest.approx(report.entropy, rel=0.5)
    assert last.drift_nats > 0
    trainer.close()


def test_samples_that_can_not_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(ResourceError, match=r"can't be written to .*step-1\.jsonl \(.*\): free some of the disk"):
        write_samples(tmp_path / "samples/step-1.jsonl", [])
