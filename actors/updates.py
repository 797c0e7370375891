"""Which version an actor should serve, and when it tries to load it."""

import logging
import time

from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import PolicyVersion, WeightsManifest
from entrostat.protocol.ports import Engine

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
REFUSALS_UNTIL_STOPPED = 6  # of one version, with doubling pauses between


class Updates:
    """The version wanted, and the bookkeeping of updates. A refused version is tried again later, not for ever."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wanted: WeightsManifest | None = None
        self._attempts = 0
        self._retry_at = 0.0
        self.served = 0
        self.refused = 0
        self.last_seconds = 0.0
        self.max_mismatch = 0.0  # nats: the largest probe difference of any version served

    @property
    def wanted(self) -> PolicyVersion | None:
        """The version that waits to be loaded."""
        return self._wanted.version if self._wanted is not None else None

    def load_first(self, manifest: WeightsManifest) -> None:
        """Loads the version to start with.

        Raises:
            WeightsRefused: the engine does not compute it, or its probe sees nothing.
        """
        self._load(manifest)

    def want(self, manifest: WeightsManifest) -> None:
        """A version was published; it takes the place of one that was not loaded yet."""
        if manifest.version not in (self._engine.version, self.wanted):
            self._wanted, self._attempts, self._retry_at = manifest, 0, 0.0

    def load_if_due(self, now: float) -> bool | None:
        """Loads the wanted version if there is one and its time has come.

        Returns:
            True when it is served now, False when the engine refused it, None when nothing was tried.

        Raises:
            WeightsRefused: it was refused so often that waiting won't help.
        """
        if self._wanted is None or now < self._retry_at:
            return None
        manifest = self._wanted
        try:
            self._load(manifest)
        except WeightsRefused as error:
            self.refused += 1
            self._attempts += 1
            if self._attempts == REFUSALS_UNTIL_STOPPED:
                raise WeightsRefused(f"refused {self._attempts} times: {error}") from error
            pause = FIRST_RETRY_SECONDS * 2 ** (self._attempts - 1)
            self._retry_at = now + pause
            log.warning("serving %s on, again in %.1f s: %s", self._engine.version, pause, error)
            return False
        self._wanted = None
        return True

    def _load(self, manifest: WeightsManifest) -> None:
        began = time.monotonic()
        self._engine.load(manifest)
        self.served += 1
        self.last_seconds = time.monotonic() - began
        self.max_mismatch = max(self.max_mismatch, self._engine.mismatch)
