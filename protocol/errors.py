"""Every error of ours, drawn as one tree.

    EntrostatError                exit code 1
    ├── BadInput                  2   what the user gave can't work; nothing was written
    │   ├── ConfigError               the TOML: unknown key, wrong range, contradiction
    │   ├── ModelError                the model's folder or its tokenizer
    │   ├── TaskError                 a dataset or one of its rows
    │   ├── RunDirectoryError         exists already, is in use, or can't be written
    │   ├── CheckpointDamaged         a checkpoint does not match its own checksums
    │   └── ResourceError             port taken, no shared memory, no disk
    ├── WireError                 1   bytes that are not a message we can read
    │   ├── SchemaMismatch            another version of the protocol wrote them
    │   └── ChecksumMismatch          they changed on the way
    ├── JournalDamaged            1   a run's journal changed since it was written
    ├── JournalDiffers            1   its events, applied again, lead to something else
    ├── WeightsRefused            1   the engine does not compute what the learner published
    ├── PolicyMismatch            1   the engine samples from another policy than the learner trains
    ├── StationLost               1   a process of the run died and was not replaced
    │   └── StationAway               one died and is being replaced: ask again
    ├── NumericsError             1   a loss or gradient is not finite
    ├── Stalled                   3   a deadline passed without progress
    └── Interrupted             130   stopped by the user, saved

Each takes exactly one string, so that it survives pickling through Ray.
"""


class EntrostatError(Exception):
    """The root of the tree."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)


class BadInput(EntrostatError):
    """What the user gave can't work."""

    exit_code = 2


class ConfigError(BadInput):
    """The TOML has an unknown key, a value out of range, or a contradiction."""


class ModelError(BadInput):
    """The model's folder is missing, incomplete or not usable."""


class TaskError(BadInput):
    """A dataset is empty, missing, or has a row that can't be used."""


class RunDirectoryError(BadInput):
    """The run directory exists already, is in use, or can't be written."""


class CheckpointDamaged(BadInput):
    """A checkpoint's files don't match their recorded checksums."""


class ResourceError(BadInput):
    """The machine lacks something: a free port, shared memory, disk."""


class WireError(EntrostatError):
    """Bytes that are not a message we can read."""


class SchemaMismatch(WireError):
    """Another version of the protocol wrote these bytes."""


class ChecksumMismatch(WireError):
    """The bytes changed on the way."""


class JournalDamaged(EntrostatError):
    """A journal's bytes changed since they were written, or some are missing before its end."""


class JournalDiffers(EntrostatError):
    """A journal's events lead to something else than was recorded."""


class WeightsRefused(EntrostatError):
    """An engine does not compute what the learner published."""


class PolicyMismatch(EntrostatError):
    """The engine samples from another policy than the learner trains."""


class StationLost(EntrostatError):
    """A process of the run died and was not replaced."""


class StationAway(StationLost):
    """A process of the run died and is being replaced: the call may be made again."""


class NumericsError(EntrostatError):
    """A loss or a gradient is not finite."""


class Stalled(EntrostatError):
    """A deadline passed without progress."""

    exit_code = 3


class Interrupted(EntrostatError):
    """The user stopped the run; it was saved."""

    exit_code = 130
