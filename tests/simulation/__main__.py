"""`python -m tests.simulation --seeds 1000`: that many runs, each from its own seed; the first failure is told."""

import argparse
import logging
import sys
import time
from collections import Counter

from tests.simulation.simulate import Outcome, simulate

FAILED = 1


def main() -> int:
    """Simulates the seeds asked for; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--keep-going", action="store_true", help="one line for each failure, and on")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # hundreds of thousands of lines of what is meant to go wrong
    began = time.monotonic()
    met: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    events = lives = failures = 0
    seconds = 0.0
    for seed in range(options.first, options.first + options.seeds):
        outcome = simulate(seed)
        if outcome.violation:
            failures += 1
            print(f"seed {seed}: {outcome.violation}" if options.keep_going else told(outcome), flush=True)
            if not options.keep_going:
                return FAILED
        met.update(outcome.met)
        ends.update(outcome.ends)
        events, lives, seconds = events + outcome.events, lives + outcome.lives, seconds + outcome.now
    took = time.monotonic() - began
    hours = seconds / 3600.0
    print(
        f"{options.seeds} seeds, {lives} lives of drivers, {events:,} events, {hours:.1f} virtual hours in {took:.0f} s"
    )
    print("met: " + ", ".join(f"{count:,} × {what}" for what, count in sorted(met.items())))
    print("leases: " + ", ".join(f"{count:,} {what}" for what, count in ends.items()))
    return FAILED if failures else 0


def told(outcome: Outcome) -> str:
    """A failure as people read it: what, when, what led to it, and how to see it again."""
    lines = [f"the last {len(outcome.trace)} events:", *(f"  {line}" for line in outcome.trace)]
    seed = outcome.scenario.seed
    lines += [
        f"{outcome.scenario}",
        f"seed {seed}, virtual second {outcome.now:.3f}, event {outcome.events:,}: {outcome.violation}",
        f"again: python -m tests.simulation --first {seed} --seeds 1",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
