"""What the configuration files of this host mean for its agent: the difficulties of devices, and the images that may run."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from ownpod.configuration import allowed_images, device_difficulties, load_endpoints
from ownpod.errors import ConfigurationError
from ownpod.rules.devices import Difficulties
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.images import ALL_IMAGES
from ownpod.settings import Settings

log = logging.getLogger(__name__)


class _Patterns(Iterable[str]):
    """Patterns that are computed again at each use, so that a reload changes them."""

    def __init__(self, now: Callable[[], tuple[str, ...]]) -> None:
        self._now = now

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())


class Configured:
    """The part of the configuration that an agent needs, read at its start and after each :meth:`reload`.

    An agent may run on a host without ``workers.yaml``, so a problem of that file stops no agent.

    Raises:
        ConfigurationError: ``OWNPOD_PRESETS_FILE`` is set, and a file of the configuration cannot be used.
    """

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._endpoints: Mapping[str, Endpoint] = {}
        self._is_old = False
        self.images: Iterable[str] = _Patterns(self._patterns)
        """Patterns of the images that may run here: ``OWNPOD_IMAGES``, and the images of presets."""
        try:
            self._endpoints = load_endpoints(config)
        except ConfigurationError as error:
            if config.presets_file is not None:
                raise
            log.warning("the agent knows no presets: %s", error)

    def reload(self) -> None:
        """Reads the files again when something of them is needed next. A signal handler may call this."""
        self._is_old = True

    def difficulties(self) -> Difficulties:
        """The difficulties of this host's devices."""
        return device_difficulties(self._config, self._current().values())

    def _patterns(self) -> tuple[str, ...]:
        if ALL_IMAGES in self._config.images:
            return self._config.images
        return allowed_images(self._config.images, self._current().values())

    def _current(self) -> Mapping[str, Endpoint]:
        if self._is_old:
            self._is_old = False
            try:
                self._endpoints = load_endpoints(self._config)
            except ConfigurationError as error:
                log.warning("the configuration stays as it was: %s", error)
        return self._endpoints
