from pathlib import Path

import pytest

from entrostat.config import load
from entrostat.explain import explain

CHOSEN = "entropy.tokens.kind=top_entropy"
NOTE = "the law is told the mean over all response tokens, and the bonus is on 20% of them"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([CHOSEN, "entropy.law.kind=quadratic"], True),
        ([CHOSEN], True),
        (["entropy.law.kind=quadratic"], False),
        ([CHOSEN, "entropy.law.kind=fixed", "entropy.law.coefficient=0.1"], False),  # it asks for no measurement
        ([CHOSEN, "entropy.law.kind=sample_balance"], False),  # it gives no bonus
    ],
)
def test_a_law_that_is_told_of_other_tokens_than_have_the_bonus_is_said_to_be(
    repository: Path, overrides: list[str], said: bool
) -> None:
    found = " ".join(explain(load(repository / "deploy/runs/quickstart.toml", overrides)).split())
    assert (NOTE in found) is said
