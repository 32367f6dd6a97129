"""What the start of ``ownpod up`` examines of the templates before, and beside, what the agents do."""

import contextlib
from collections.abc import Mapping

from ownpod.configuration import allowed_images
from ownpod.errors import ConfigurationError, OwnPodError
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.images import ALL_IMAGES, not_allowed
from ownpod.rules.secrets import of_environment, used_by, why_missing
from ownpod.settings import Settings
from ownpod.store.secrets import Secrets


def check_images(config: Settings, endpoints: Mapping[str, Endpoint]) -> None:
    """Checks the templates' images against this host's list, where its workers are containers.

    Raises:
        ConfigurationError: one is not allowed; the message names the endpoint, the image and OWNPOD_IMAGES.
    """
    if config.engine == "process" or ALL_IMAGES in config.images:
        return
    found = {
        name: endpoint.managed.template.image
        for name, endpoint in sorted(endpoints.items())
        if endpoint.managed is not None
    }
    problem = not_allowed(found, allowed_images(config.images, endpoints.values()))
    if problem and (config.engine == "docker" or has_docker()):
        raise ConfigurationError(problem)


def has_docker() -> bool:
    """Whether the agent's engine is Docker where the setting is ``auto``."""
    # Imported late, because it loads an HTTP client, which takes megabytes.
    from ownpod.agent.docker_api import DockerApi

    try:
        with contextlib.closing(DockerApi()) as api:
            api.call(lambda client: client.ping())
    except OwnPodError:
        return False
    return True


def secrets_warning(
    endpoints: Mapping[str, Endpoint], stored: Secrets, environ: Mapping[str, str]
) -> str | None:
    """One line about secrets of templates that are not there; None: all are. Their jobs wait, and the start goes on.

    Secrets can only be stored while OwnPod runs.
    """
    specs = {name: e.managed for name, e in endpoints.items() if e.managed is not None}
    users = used_by(specs)
    if users:
        there = {*stored.names(), *of_environment(environ)}
        users = {name: ids for name, ids in users.items() if name not in there}
    if not users:
        return None
    waiting = ", ".join(sorted({endpoint for ids in users.values() for endpoint in ids}))
    return f"warning: the jobs of {waiting} wait: {why_missing(sorted(users))}"
