from pathlib import Path

import pytest

from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.verifiers.judge import Judge
from entrostat.protocol.messages import Prompt
from entrostat.protocol.task_settings import Jsonl, ReasoningGym

SUMS = ReasoningGym(dataset="chain_sum", size=4)
MATHS = Jsonl(path="not read by a verifier")
JUDGE = Judge([SUMS, MATHS])
PROMPT = load_prompts([SUMS]).prompts[0]


def problem(answer: str) -> Prompt:
    return Prompt(id=0, name="p:1", level="", task=1, text="", answer=answer, entry="")


# ── reasoning-gym ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_right_answer_in_its_tags_is_correct() -> None:
    verdict = JUDGE.verify(PROMPT, f"1+1=2 <answer> {PROMPT.answer} </answer>")
    assert (verdict.reward, verdict.status) == (1.0, "correct")
    assert verdict.seconds > 0


def test_the_last_answer_counts() -> None:
    verdict = JUDGE.verify(PROMPT, f"<answer>{PROMPT.answer}</answer> no, <answer>9999</answer>")
    assert verdict.status == "wrong"


def test_the_tags_are_read_as_the_library_reads_them() -> None:
    from reasoning_gym.utils import extract_answer

    from entrostat.actors.verifiers.reasoning_gym import ANSWER

    for text in (
        "<answer>1</answer>",
        "<answer>\n 1 \n</answer> <answer> 2</answer>",
        "<answer><answer>1</answer>",
        "<answer>1",
    ):
        ours = ANSWER.findall(text)
        assert (ours[-1].strip() if ours else None) == extract_answer(text)


def test_no_tags_are_unparsable() -> None:
    verdict = JUDGE.verify(PROMPT, f"the answer is {PROMPT.answer}")
    assert (verdict.reward, verdict.status) == (0.0, "unparsable")


def test_a_partial_score_is_the_reward_of_a_wrong_answer() -> None:
    # The library gives a part for an answer that holds the right one among more.
    verdict = JUDGE.verify(PROMPT, f"<answer>{PROMPT.answer} or so</answer>")
    assert verdict.status == "wrong"
    assert 0 < verdict.reward < 1


def test_a_scorer_that_compares_tuples_still_finds_the_right_answer_right() -> None:
    task = ReasoningGym(dataset="rearc", size=1, seed=1)
    prompt = load_prompts([task]).prompts[0]
    assert Judge([task]).verify(prompt, f"<answer>{prompt.answer}</answer>").status == "correct"


# ── math-verify ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("72", "so it is \\boxed{72}"),
        ("1,234", "The answer is 1234."),
        ("\\frac{1}{2}", "\\boxed{0.5}"),
        ("$\\frac{1}{2}$", "$1/2$"),
        ("x^2+1", "\\boxed{1+x^2}"),
        ("(3,4)", "\\boxed{(3,4)}"),
        ("27.0", "\\boxed{27}"),
        ("-5", "#### -5"),
    ],
)
def test_equal_mathematics_is_correct(answer: str, text: str) -> None:
    verdict = JUDGE.verify(problem(answer), text)
    assert (verdict.reward, verdict.status) == (1.0, "correct")


@pytest.mark.parametrize(("answer", "text"), [("72", "\\boxed{27}"), ("5", "\\boxed{-5}"), ("x+1", "\\boxed{x-1}")])
def test_unequal_mathematics_is_wrong(answer: str, text: str) -> None:
    verdict = JUDGE.verify(problem(answer), text)
    assert (verdict.reward, verdict.status) == (0.0, "wrong")


def test_no_mathematics_is_unparsable() -> None:
    assert JUDGE.verify(problem("72"), "I don't know.").status == "unparsable"


def test_an_expected_answer_that_cannot_be_read_is_an_error_and_not_a_wrong_answer() -> None:
    verdict = JUDGE.verify(problem(" "), "\\boxed{1}")
    assert (verdict.reward, verdict.status) == (0.0, "error")
    assert "the answer of p:1 can't be read" in verdict.detail


@pytest.mark.parametrize("place", ["math_verify.parser.extract_target_from_pred", "math_verify.grader.sympy_expr_eq"])
def test_a_library_that_fails_over_an_answer_is_an_error_and_not_a_wrong_answer(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*arguments: object, **options: object) -> None:
        raise MemoryError

    judge = Judge([SUMS, MATHS])
    assert judge.verify(problem("81"), "\\boxed{3^4}").status == "correct"
    monkeypatch.setattr(place, out_of_memory)
    verdict = judge.verify(problem("81"), "\\boxed{3^4}")
    assert (verdict.reward, verdict.status) == (0.0, "error")
    assert "MemoryError" in verdict.detail


def test_real_answers_are_right_and_others_wrong(test_data: Path) -> None:
    task = Jsonl(path=str(test_data / "gsm8k_test.jsonl"), answer_after="####", limit=100)
    judge = Judge([task])
    prompts = load_prompts([task]).prompts
    assert {judge.verify(prompt, f"\\boxed{{{prompt.answer}}}").status for prompt in prompts} == {"correct"}
    assert {judge.verify(prompt, f"\\boxed{{{prompt.answer}1}}").status for prompt in prompts} == {"wrong"}


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_of_an_unknown_task_is_an_error_that_names_it() -> None:
    stray = Prompt(id=0, name="stray/1", level="", task=2, text="", answer="1", entry="")
    verdict = JUDGE.verify(stray, "\\boxed{1}")
    assert (verdict.reward, verdict.status) == (0.0, "error")
    assert "stray/1 belongs to task 2; this run has 2" in verdict.detail


def test_a_scorer_that_raises_costs_its_item_and_says_why() -> None:
    broken = Prompt(id=0, name="b", level="", task=0, text="", answer="1", entry="{")
    verdict = JUDGE.verify(broken, "<answer>1</answer>")
    assert (verdict.reward, verdict.status) == (0.0, "error")
    assert "DecodeError" in verdict.detail
