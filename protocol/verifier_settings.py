"""How responses to a task are judged: one Struct per kind of verifier, named in a task's `[tasks.verifier]`."""

from typing import Annotated

from msgspec import Meta

from entrostat.protocol.ranges import Count, NonNegative, Positive, Seconds, Settings


class Math(Settings, frozen=True, kw_only=True, tag_field="kind", tag="math"):
    """Mathematics, equal if `math-verify` can show that it is."""


class Numeric(Settings, frozen=True, kw_only=True, tag_field="kind", tag="numeric"):
    """The last number of the response, equal within a tolerance."""

    relative_tolerance: NonNegative = 1e-6
    absolute_tolerance: NonNegative = 0.0


class Exact(Settings, frozen=True, kw_only=True, tag_field="kind", tag="exact"):
    """The same text, blanks at its ends apart."""

    ignore_case: bool = False


class Choice(Settings, frozen=True, kw_only=True, tag_field="kind", tag="choice"):
    """The letter of one of several choices."""

    choices: Annotated[str, Meta(min_length=2)] = "ABCD"


class GymScorer(Settings, frozen=True, kw_only=True, tag_field="kind", tag="reasoning_gym"):
    """The scorer of the `reasoning-gym` dataset that the problem comes from."""


class Code(Settings, frozen=True, kw_only=True, tag_field="kind", tag="code"):
    """A Python program, run against tests in a process of its own, without network and with limits."""

    test_seconds: Seconds = 4.0  # for one test, by the wall clock
    total_seconds: Seconds = 8.0  # for all tests of a response; keep it below the verifiers' deadline_seconds
    memory_mib: Count = 512
    file_mib: Count = 8  # that one file in its temporary folder may grow to
    partial: bool = False  # the reward is the share of tests passed; without, all must pass
    tolerance: NonNegative = 1e-6  # of decimals in what is printed or returned, relative and, near 0, absolute
    packages: bool = False  # programs may import what is installed beside Entrostat, as numpy; slower to start
    unconfined: bool = False  # run also where the kernel can't confine it


class Format(Settings, frozen=True, kw_only=True, tag_field="kind", tag="format"):
    """The response's structure: each of `tags` once, in this order, and nothing outside of them."""

    tags: Annotated[tuple[str, ...], Meta(min_length=1)] = ("think", "answer")
    opened: bool = False  # the prompt already ends with the first opening tag, as some chat templates have it


class Custom(Settings, frozen=True, kw_only=True, tag_field="kind", tag="custom"):
    """A function of the user's: `verify(prompt, text)` that returns a `Verdict`, or a reward from 0 to 1."""

    function: Annotated[str, Meta(pattern=r"^[\w.]+:\w+$")]  # module:function


OneVerifier = Math | Numeric | Exact | Choice | GymScorer | Code | Format | Custom


class Part(Settings, frozen=True, kw_only=True):
    """One verifier of a weighted sum."""

    weight: Positive
    verifier: OneVerifier


class Weighted(Settings, frozen=True, kw_only=True, tag_field="kind", tag="weighted"):
    """The sum of several verifiers' rewards, each with its weight; the first one's status is the sum's."""

    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]


AnyVerifier = OneVerifier | Weighted


def parts_of(settings: AnyVerifier) -> tuple[OneVerifier, ...]:
    """The verifiers that a verifier is made of: itself, or those of a weighted sum."""
    return tuple(part.verifier for part in settings.parts) if isinstance(settings, Weighted) else (settings,)
