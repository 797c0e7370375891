"""The tables of what the control plane costs, from measurements that are made up."""

from typing import Any

import numpy as np
import pytest

from benchmarks import overhead, overhead_alone, overhead_stations, overhead_system
from entrostat.protocol import wire
from entrostat.protocol.messages import Group


def found() -> dict[str, Any]:
    processor = {"controller": 0.02, "buffer": 0.01, "actor": 0.03, "learner": 0.01, "driver": 0.02, "Ray": 0.01}
    return {
        "asynchronous": {"step_seconds": 10.0, "processor": processor, "to_the_learner": [0.03, 0.04, 0.2]},
        "on-policy": {
            "step_seconds": 5.0,
            "processor": processor,
            "to_the_actor": [0.1, 0.1],
            "last_group": [0.05, 0.07, 0.05],
        },
        "state_machine": {"reports": 100_000, "seconds": 4.0, "pulses": 1, "orders": 1},
        "decoding": {"bytes": 1_000_000, "shared": True, "decode": [1e-4, 2e-4, 9.0], "encode": [1e-3]},
        "prompts": {"prompts": 10_000_000, "bytes": 2e8, "seconds": 3.0},
    }


def test_the_critical_path_is_told_as_a_share_of_ten_seconds() -> None:
    text = overhead.path_table(found())
    assert "| 40 ms (30–200) | 0.40% |" in text
    assert "| together | 160 ms (150–170) | 1.60% |" in text


def test_processor_time_is_summed_up_for_ten_seconds() -> None:
    lines = overhead.processor_table(found()).splitlines()
    assert lines[2] == "| asynchronous | 20 | 10 | 30 | 10 | 20 | 10 | 0 | 100 | 1.00% |"
    assert lines[3].endswith("| 200 | 2.00% |")


def test_parts_are_told_beside_their_goals() -> None:
    text = overhead.alone_table(found())
    assert "| ≥ 20,000 reports/s | 25,000 reports/s |" in text
    assert "| 5.0 GB/s, without a copy |" in text
    assert "| ≤ 400 MB | 200 MB, made in 3.0 s |" in text
    copied = found()
    copied["decoding"]["shared"] = False
    assert "COPIED" in overhead.alone_table(copied)


def test_a_page_of_nothing_has_no_rows() -> None:
    assert not [line for line in overhead.tables({}).splitlines() if " ms (" in line or "GB/s" in line]


def test_moments_of_two_stations_become_gaps() -> None:
    learner = [
        {"at": 1.0, "what": "decoded", "step": 0, "leases": [0, 1]},
        {"at": 2.0, "what": "trained", "step": 0, "work": 0.1},
        {"at": 2.5, "what": "decoded", "step": 1, "leases": [2, 3]},
    ]
    actor = [
        {"at": 0.1, "what": "began", "step": 0},
        {"at": 2.1, "what": "began", "step": 1},
        {"at": 2.2, "what": "done", "lease": 3},
        {"at": 2.3, "what": "done", "lease": 2},
    ]
    trained = learner[1:2]
    assert overhead_system.handed_over(learner, trained) == pytest.approx([0.5])
    assert overhead_system.last_group(actor, learner, trained) == pytest.approx([0.2])
    assert overhead_system.begun(actor, trained) == pytest.approx([0.1])


def test_processor_time_between_two_moments_goes_to_its_part() -> None:
    processes = overhead_system.Processes()
    processes.seen = {
        1: ("Ray", [(0.0, 1.0), (10.0, 2.0)]),
        2: ("Ray", [(0.0, 0.0), (10.0, 1.0)]),
        3: ("driver", [(5.0, 3.0), (7.0, 5.0)]),
    }
    used = processes.used(5.0, 10.0)
    assert used == pytest.approx({"Ray": 1.0, "driver": 2.0})
    assert overhead_system.part_of("ray::ControllerActor.pulse") == "controller"
    assert overhead_system.part_of("ray::IDLE") == "Ray"
    assert overhead_system.part_of("/bin/sh") == "others"


def test_a_cut_group_is_a_group_still_and_the_whole_one_is_decoded_without_a_copy() -> None:
    frame = wire.encode(overhead_alone.made_group())
    whole = wire.decode(frame, Group)
    assert np.shares_memory(whole.rollout.samples.tokens, frame)
    few = wire.decode(wire.encode(overhead_stations.cut(whole)), Group)
    samples = few.rollout.samples
    assert samples.lengths.tolist() == [overhead_stations.KEPT_TOKENS] * overhead_stations.KEPT_SAMPLES
    assert len(samples.tokens) == len(samples.logprobs) == samples.lengths.sum()
    assert samples.tokens[16:].tolist() == whole.rollout.samples.tokens[2048 : 2048 + 16].tolist()
    assert len(few.verdicts) == overhead_stations.KEPT_SAMPLES
