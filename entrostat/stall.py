"""A stall as text: who waits for whom, and why that is likely so. Written to be read at night."""

import time
from collections.abc import Iterator

import msgspec

from entrostat.controller.waiting import Cause, cause_of
from entrostat.protocol.messages import ActorView, HeardActor, Standing

MOST_LEASES = 100  # of those under way, the oldest, that are listed


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a station answered when it was asked what it does."""

    name: str
    host: str  # empty where it is not known
    process: int
    stacks: str  # of its threads; empty where none came
    problem: str = ""  # why not
    state: str = ""  # of its process, where none came: what the kernel of this host says

    @property
    def where(self) -> str:
        """Its process in words."""
        return f"process {self.process} on {self.host}" if self.process else "a process not known here"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout actor last said of itself."""

    view: ActorView
    age_seconds: float


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a stall."""

    reason: str
    doing: str  # what the driver waits for …
    doing_seconds: float  # … and for how long
    unix_seconds: float
    lease_seconds: float
    standing: Standing | None = None  # None: the controller did not say
    told: tuple[Told, ...] = ()
    looks: tuple[Look, ...] = ()


def likely_cause(picture: Picture) -> str:
    """The first explanation that what is known agrees with."""
    silent = [look for look in picture.looks if look.problem]
    if silent:
        return "; ".join(_why_silent(look) for look in silent)
    standing = picture.standing
    if standing is None:
        return "unknown: the controller could not be asked how it stands"
    if standing.ordered:
        return (
            f"the learner has an order of {standing.ordered} groups from version {standing.version} and has not "
            "reported its step: its stack below says where it is"
        )
    return _why_no_order(picture, standing)


def _why_silent(look: Look) -> str:
    if look.state == "stopped":
        return (
            f"{look.name} is suspended ({look.where} has got a SIGSTOP, or a debugger holds it): "
            f"`kill -CONT {look.process}` would have let it go on"
        )
    if look.state == "gone":
        return f"{look.name} is gone: {look.where} lives no more; the kernel's log names it if it ran out of memory"
    if look.state:
        return f"{look.name} does not answer though {look.where} is {look.state}: a call into native code holds it"
    return f"{look.name} does not answer ({look.problem}): its host may be out of reach"


def _why_no_order(picture: Picture, standing: Standing) -> str:
    heard = [actor for actor in standing.actors if actor.silent_seconds <= picture.lease_seconds]
    cause = cause_of(
        standing.leases,
        needed=standing.needed,
        actors=len(heard),
        judging=sum(actor.judging for actor in heard),
    )
    serving = ", ".join(sorted({str(told.view.version) for told in picture.told})) or "none that is known"
    refused = sum(told.view.refused_updates for told in picture.told)
    oldest = max((lease.age_seconds for lease in standing.running), default=0.0)
    explanations: dict[Cause, str] = {
        "no_actors": f"no rollout actor was heard from for {_shortest(standing.actors)}: their logs say why",
        "weights": (
            f"no lease is under way: the actors serve {serving}, the newest version is {standing.newest}, "
            f"{refused} updates were refused"
        ),
        "verifying": "enough groups are drawn and wait for their verdicts, or for the sample buffer",
        "sampling": (
            f"the actors draw: {standing.leases.running} leases are under way, the oldest for {oldest:.0f} s, "
            f"{standing.leases.expired} have expired; if that is their usual pace, raise run.stall_seconds"
        ),
    }
    return explanations[cause]


def _shortest(actors: tuple[HeardActor, ...]) -> str:
    return f"{min(actor.silent_seconds for actor in actors):.0f} s" if actors else "the whole time"


def summary(picture: Picture, path: str) -> str:
    """What the screen shows."""
    return f"{picture.reason}\n  likely cause: {likely_cause(picture)}\n  who waits for whom: {path}"


def report(picture: Picture) -> str:
    """The whole text."""
    return (
        "\n".join([*_head(picture), "", *_controller(picture), "", *_actors(picture), "", *_stations(picture)]) + "\n"
    )


def _head(picture: Picture) -> Iterator[str]:
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(picture.unix_seconds))
    yield f"No progress: the run was ended at {moment} with exit code 3."
    yield f"what          {picture.reason}"
    yield f"likely cause  {likely_cause(picture)}"
    yield f"the driver    has waited for {picture.doing or 'nobody'} for {picture.doing_seconds:.1f} s"


def _controller(picture: Picture) -> Iterator[str]:
    yield "THE CONTROLLER"
    standing = picture.standing
    if standing is None:
        yield "  did not say how it stands"
        return
    counts = standing.leases
    order = f"an order of {standing.ordered} groups is with the learner" if standing.ordered else "no order is made"
    yield f"  the next step starts from version {standing.version}, the newest published is {standing.newest}; {order}"
    yield f"  {counts.ready} of {standing.needed} groups are ready, {counts.running} leases are under way"
    ended = msgspec.structs.asdict(counts)
    yield "  leases so far: " + ", ".join(f"{name} {count}" for name, count in ended.items())
    for actor in standing.actors:
        yield (
            f"  slot {actor.slot}, incarnation {actor.incarnation}: last pulse {actor.silent_seconds:.1f} s ago, "
            f"{actor.judging} groups wait for verdicts"
        )
    oldest = sorted(standing.running, key=lambda lease: -lease.age_seconds)
    for lease in oldest[:MOST_LEASES]:
        yield (
            f"  lease {lease.id} on prompt {lease.prompt_id}: slot {lease.slot}, incarnation {lease.incarnation}, "
            f"under {lease.version}, for {lease.age_seconds:.1f} s, {lease.left_seconds:.1f} s to its deadline"
        )
    if len(oldest) > MOST_LEASES:
        yield f"  … and {len(oldest) - MOST_LEASES} younger leases"


def _actors(picture: Picture) -> Iterator[str]:
    yield "THE ROLLOUT ACTORS, as they last said themselves"
    for told in picture.told:
        view = told.view
        yield (
            f"  slot {view.slot}, incarnation {view.incarnation}, {told.age_seconds:.1f} s ago: serves {view.version}, "
            f"{view.requests} leases in the engine of {view.held} held, {view.tokens} tokens drawn, "
            f"{view.updates} updates served, {view.refused_updates} refused, "
            f"last turn {view.turn_seconds:.1f} s before{', draining' if view.draining else ''}"
        )
    if not picture.told:
        yield "  none has said anything"


def _stations(picture: Picture) -> Iterator[str]:
    yield "THE PROCESSES, asked what they do"
    for look in picture.looks:
        state = f"; the kernel says: {look.state}" if look.state else ""
        yield f"  {look.name}, {look.where}: {look.problem + state if look.problem else 'answered'}"
    for look in picture.looks:
        if look.stacks:
            yield ""
            yield f"── {look.name}, {look.where}"
            yield look.stacks.rstrip()
