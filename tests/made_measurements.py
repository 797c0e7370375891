"""Made-up measurements of entropy, and a law that is fed with them."""

from hypothesis import strategies as st

from entrostat.controller.coefficient import LawState, Measurement, initial_state, law_step
from entrostat.protocol.entropy_settings import LawSettings, ThermostatLaw
from entrostat.protocol.messages import PolicyVersion

ENTROPY = st.floats(0.0, 12.0)
THERMOSTAT = ThermostatLaw(balance=0.1, drift=0.008, anchor=0.7)


def measured(step: int, entropy: float, tokens: int = 100, branch: int = 0) -> Measurement:
    """The entropy of the policy of this step, in nats per response token."""
    return Measurement(version=PolicyVersion(branch=branch, step=step), entropy=entropy, tokens=tokens)


def fed(law: LawSettings, entropies: list[float]) -> list[LawState]:
    """The law's state before the first of these entropies and after each."""
    states = [initial_state(law)]
    for step, entropy in enumerate(entropies):
        states.append(law_step(law, states[-1], measured(step, entropy)))
    return states
