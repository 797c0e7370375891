from entrostat.controller.running import RunningLeases
from entrostat.protocol.messages import Lease, PolicyVersion

HOLDER = (0, 1)


def lease(number: int) -> Lease:
    version = PolicyVersion(branch=0, step=0)
    return Lease(id=number, prompt_id=number, samples=2, version=version, seed=0, deadline_seconds=5.0)


def test_leases_of_a_holder_keep_their_order_through_a_state() -> None:
    before, after = RunningLeases(5.0), RunningLeases(5.0)
    for number in (6, 7):
        before.grant(lease(number), HOLDER, at=0.0, place=number, pulse=1)
    renewed = before.get(6)
    assert renewed is not None
    before.renew(renewed, 1.0)  # 7 is due before 6 now
    after.restore(before.state())
    assert list(after) == list(before) == [7, 6]
    assert list(after.of(HOLDER)) == list(before.of(HOLDER)) == [6, 7]
    assert after.of_slot(0) == before.of_slot(0)
