"""Judges answers to generated problems by the scorer of the dataset they come from."""

import math
import re

from entrostat.actors.tasks.entries import decode_entry
from entrostat.actors.tasks.gym_library import create_dataset
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.task_settings import ReasoningGym

# The library's own `extract_answer`: the last pair of tags, and one blank on either side inside them.
ANSWER = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)


class ReasoningGymVerifier:
    """Reads the last `<answer>…</answer>` and asks the dataset what it is worth.

    A score of 1 is correct; anything less keeps its score as the reward and is wrong; no tags, unparsable.
    """

    def __init__(self, settings: ReasoningGym) -> None:
        """Makes the dataset, which holds the scorer.

        Raises:
            TaskError: the library doesn't know the dataset or refuses its parameters.
        """
        self._dataset = create_dataset(settings)
        self._name = settings.dataset

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth; whatever the scorer raises is raised."""
        answers = ANSWER.findall(text)
        if not answers:
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail="no <answer>…</answer>")
        answer = answers[-1].strip()
        score = float(self._dataset.score_answer(answer, decode_entry(prompt.entry)))
        if not math.isfinite(score):
            raise ValueError(f"the scorer of {self._name!r} gave {score} for {prompt.name}; expected a number")
        return Verdict(reward=score, status="correct" if score >= 1.0 else "wrong", seconds=0.0, answer=answer)
