"""What a verifier makes at its first uses is made before the first fork: imports, the grammar's tables, sympy's caches.

The first answer of each form takes `math-verify` 30 to 200 ms, later ones 1 to 20 ms; that is behind a forked worker.
"""

from collections.abc import Sequence

from entrostat.actors.verifiers.judge import Judge, kinds_of
from entrostat.protocol.messages import Prompt
from entrostat.protocol.task_settings import Jsonl, TaskSettings
from entrostat.protocol.verifier_settings import Math

# Expected answer and response, one pair for each form that has code of its own to import or tables to fill.
FORMS: tuple[tuple[str, str], ...] = (
    ("72", "so it is \\boxed{72}"),
    ("72", "the answer is 27"),
    ("1,234", "#### 1234.0"),
    ("\\frac{1}{2}", "\\boxed{0.5}"),
    ("50\\%", "50%"),
    ("(1,2)", "$(1,2)$"),
    ("[0,\\infty)", "\\boxed{[0,\\infty) \\cup (1,2]}"),
    ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
    ("x=3", "$x=3$"),
    ("x<3", "$3>x$"),
    ("x^2-1", "which is $(x-1)(x+1)$ in the end"),
    ("x^2+1", "\\boxed{1+x^2}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "$\\begin{pmatrix}1\\\\2\\end{pmatrix}$"),
    ("\\sqrt{2}", "1.414"),
    ("\\int x dx", "$\\frac{x^2}{2}$"),
    ("\\sin(x)", "$\\cos(\\pi)$"),
    ("3!", "6 \\text{ cm}"),
    ("\\log 2", "$\\ln 2$"),
    ("1+2i", "$\\boxed{2i+1}$"),
)


def warm_up(tasks: Sequence[TaskSettings]) -> None:
    """Judges one answer of each form by the verifiers of these tasks whose first uses are slow.

    `code` and a user's own function are not called here: what they do is for a worker's limits.
    """
    if Math not in kinds_of(tasks):
        return
    judge = Judge([Jsonl(path="not read by a verifier", verifier=Math())])
    for answer, response in FORMS:
        judge.verify(Prompt(id=0, name="warm-up", level="", task=0, text="", answer=answer, entry=""), response)
