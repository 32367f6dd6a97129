"""Releases of an endpoint: what makes one, how two differ, when one takes the place of another, and when it is given up. Pure.

The rules are those of RunPod's rolling releases: the image, command, environment, limits, devices and volumes make
a release; the limits of scaling and the time-outs do not.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ownpod.errors import BadRequest
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, ManagedWorker, Phase
from ownpod.rules.placement import groups, why_waits
from ownpod.rules.scaling import start_pause_s
from ownpod.rules.secrets import secrets_in
from ownpod.rules.templates import (
    DEFAULT_INIT_TIMEOUT_S,
    GpuNeed,
    Limits,
    ManagedSpec,
    Sharing,
    serving_of,
)
from ownpod.rules.volumes import has_all

KEPT = 20
"""Number of an endpoint's last releases that are kept."""

FAILURES_ROLL_BACK = 3
"""Number of failed starts in a row after which ``autoRollback`` gives a release up, if none of its workers was ever
ready."""

UNHEARD_S = 30.0
"""Seconds after which a release does not wait any more for a host that has published nothing about its image, because its
agent may be of a version that publishes none."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
"""Pattern of an image's digest, and of its id on one host."""

FROM_FILE = "its configuration has changed"
NEW_IMAGE = "the tag of its image has moved"


@dataclass(frozen=True)
class Release:
    """A release of an endpoint. Times in ms since the epoch, by Redis's clock.

    Attributes:
        number: 1, 2 and so on, in the order in which they were made.
        id: the name that its workers' records have, 12 hexadecimal digits. A release that goes back to an earlier one
            has that one's id, because its workers are the same.
        spec: what its workers are started from; its scaling, time-outs and sharing have no meaning.
        why: why it was made.
        digest: of its image; "": no engine has resolved it.
        ready_ms: when a worker of it was first seen ready; None: none was.
        ended: why it was given up; "": it was not.
    """

    number: int
    id: str
    made_ms: int
    spec: ManagedSpec
    why: str = FROM_FILE
    digest: str = ""
    ready_ms: int | None = None
    ended: str = ""


@dataclass(frozen=True)
class Rollout:
    """Where an endpoint's releases are.

    Attributes:
        configured: name of the configured spec for which the last release was made, ``ManagedSpec.release``.
        current: what new workers are started from; None: nothing was recorded.
        next: the release whose image the hosts get now; None: there is none.
    """

    configured: str = ""
    current: Release | None = None
    next: Release | None = None

    @property
    def latest(self) -> Release | None:
        return self.next or self.current


@dataclass(frozen=True)
class RolledOut:
    """An endpoint's releases as clients see them.

    Attributes:
        image_waits: what the next release waits for, mostly its image; "": nothing is known.
        given_up: the release that was given up for the last one; None: none was.
    """

    rollout: Rollout = Rollout()
    image_waits: str = ""
    given_up: Release | None = None


NO_RELEASES = RolledOut()


def recorded(spec: ManagedSpec) -> ManagedSpec:
    """The part of a spec that makes a release."""
    template = replace(
        spec.template, init_timeout_s=DEFAULT_INIT_TIMEOUT_S, sharing=Sharing(), digest=""
    )
    balancing = None if spec.balancing is None else serving_of(spec.balancing)
    return ManagedSpec(template, gpu=spec.gpu, balancing=balancing)


def effective(release: Release, configured: ManagedSpec) -> ManagedSpec:
    """What workers of a release are started from now: its own spec, with the scaling and time-outs that are configured."""
    template = replace(
        release.spec.template,
        init_timeout_s=configured.template.init_timeout_s,
        sharing=configured.template.sharing,
        digest=release.digest,
    )
    return replace(
        configured, template=template, gpu=release.spec.gpu, balancing=release.spec.balancing
    )


# How two releases differ.


def changed(old: Release, new: Release) -> tuple[str, ...]:
    """Names of the fields in which two releases differ, as ``workers.yaml`` has them. Values are left out: they may be
    secrets.
    """
    names = [*_changed(old.spec, new.spec)]
    same_image = old.spec.template.image == new.spec.template.image
    if same_image and old.digest and new.digest and old.digest != new.digest:
        names.insert(0, "image's digest")
    return tuple(names)


def _changed(old: ManagedSpec, new: ManagedSpec) -> Iterator[str]:
    before, now = old.template, new.template
    for name in ("image", "entrypoint", "command", "registry"):
        if getattr(before, name) != getattr(now, name):
            yield name
    for name in sorted({*before.env, *now.env}):
        if before.env.get(name) != now.env.get(name):
            yield f"env.{name}"
    yield from _limits(before.limits, now.limits)
    for name in ("protocol", "volumes", "egress"):
        if getattr(before, name) != getattr(now, name):
            yield name
    yield from _gpu(old.gpu, new.gpu)
    if old.balancing is not None and new.balancing is not None:
        for name, key in _SERVES.items():
            if getattr(old.balancing, name) != getattr(new.balancing, name):
                yield key


_SERVES = {"port": "port", "health_port": "healthPort", "health_path": "healthPath"}


def _limits(before: Limits, now: Limits) -> Iterator[str]:
    keys = {"memory_bytes": "memory", "cpus": "cpus", "shm_bytes": "shm", "pids": "pids"}
    for name, key in keys.items():
        if getattr(before, name) != getattr(now, name):
            yield f"limits.{key}"


def _gpu(before: GpuNeed | None, now: GpuNeed | None) -> Iterator[str]:
    if (before is None) != (now is None):
        yield "gpu"
    elif before is not None and now is not None:
        if before.pools != now.pools:
            yield "gpu.pools"
        if before.count != now.count:
            yield "gpu.count"


# The image on the hosts.


@dataclass(frozen=True)
class HostImage:
    """What a host has published about the image of a release.

    Attributes:
        ready: the host has the image.
        tries: number of times that it could not get the image.
        words: the progress, or why it could not.
    """

    ready: bool = False
    tries: int = 0
    words: str = ""

    @property
    def retry_s(self) -> float:
        """Seconds until the next try."""
        return start_pause_s(self.tries)


@dataclass(frozen=True)
class Prepared:
    """Whether workers of a release may be started now, because a host has its image.

    Attributes:
        reason: what it waits for, in words; "" once it is done.
        failed: no host could get the image, :data:`FAILURES_ROLL_BACK` times.
    """

    done: bool
    reason: str = ""
    failed: bool = False


def could_run(spec: ManagedSpec, agent: AgentInfo) -> bool:
    """Whether a host has what a worker needs, whatever occupies its devices now."""
    if agent.draining or agent.silent_s > HOST_SILENT_S:
        return False
    if not has_all(agent, (mount.name for mount in spec.template.volumes)):
        return False
    need = spec.gpu
    if need is None:
        return True
    return any(len(found) >= need.count for _, found in groups(agent.devices, need.pools))


def why_none_can_run(spec: ManagedSpec, agents: Sequence[AgentInfo]) -> str:
    """Why no host could run a worker, whatever occupies the devices now, in words for people; "": one could."""
    if any(could_run(spec, agent) for agent in agents):
        return ""
    need = spec.gpu
    worker = ManagedWorker(
        "",
        "",
        spec.release,
        Phase.WANTED,
        created_ms=0,
        gpu_count=need.count if need else 0,
        pools=need.pools if need else (),
        volumes=tuple(mount.name for mount in spec.template.volumes),
    )
    return why_waits(worker, agents, {})


def prepared(
    spec: ManagedSpec,
    agents: Sequence[AgentInfo],
    images: Mapping[str, HostImage],
    *,
    old_hosts: Collection[str],
    waited_s: float,
) -> Prepared:
    """Whether a release may begin, so that workers of the one before it leave.

    A host must be able to run it, for example have its volumes: otherwise the earlier workers would leave in vain. One
    host must have its image and its secrets. Those with workers of the earlier release must have them too, or must have
    failed to get the image, because new workers come to the devices of these.

    Args:
        spec: of the release.
        agents: all hosts.
        images: what the hosts have published, by name.
        old_hosts: hosts with workers of the earlier release.
        waited_s: seconds since the release was made.
    """
    able = [agent for agent in agents if could_run(spec, agent)]
    if not able:
        return Prepared(done=False, reason=why_none_can_run(spec, agents))
    found = {agent.host: _image(spec, agent, images, waited_s) for agent in able}
    if all(image.tries for image in found.values()):
        host, image = min(found.items())
        failed = all(image.tries >= FAILURES_ROLL_BACK for image in found.values())
        return Prepared(done=False, reason=f"host {host}: {image.words}", failed=failed)
    coming = {host: image for host, image in found.items() if not (image.ready or image.tries)}
    here = any(image.ready for image in found.values())
    waits = sorted(coming.keys() & set(old_hosts) if here else coming)
    if not waits:
        return Prepared(done=True)
    words = coming[waits[0]].words or "it is about to get the image"
    return Prepared(done=False, reason=f"host {waits[0]}: {words}")


def is_published(spec: ManagedSpec, engine: str) -> bool:
    """Whether hosts with an engine publish whether they have what a release needs: its image and its secrets."""
    # The engine of processes only notes the image.
    gets_image = spec.template.image is not None and engine != "process"
    return gets_image or bool(secrets_in(spec.template.env))


def _image(
    spec: ManagedSpec, agent: AgentInfo, images: Mapping[str, HostImage], waited_s: float
) -> HostImage:
    if not is_published(spec, agent.engine):
        return HostImage(ready=True)
    if agent.host in images:
        return images[agent.host]
    return HostImage(ready=waited_s >= UNHEARD_S)


def to_check(
    before: Mapping[str, ManagedSpec | None], now: Mapping[str, ManagedSpec | None]
) -> list[str]:
    """Endpoints whose tag may mean another image, when the configuration is read again without a change of theirs.

    Args:
        before: the specs by endpoint, until now; None: it has no template.
        now: those that were read.
    """
    return [
        name
        for name, spec in sorted(now.items())
        if spec is not None
        and (old := before.get(name)) is not None
        and old.release == spec.release
        and spec.template.image is not None
        and "@" not in spec.template.image
    ]


# Back to an earlier release.


def last_good(releases: Sequence[Release], given_up: Release) -> Release | None:
    """The release to which an endpoint goes back: the last one before whose workers were ready; None: there is none."""
    before = [r for r in releases if r.number < given_up.number and r.id != given_up.id]
    ready = [r for r in before if r.ready_ms is not None and not r.ended]
    return max(ready, key=lambda release: release.number, default=None)


def target_of(found: Sequence[Release], latest: Release, number: int | None) -> Release:
    """The release to go back to.

    Args:
        found: the releases that are kept.
        latest: the last one, which is given up.
        number: of the wanted one; None: the last one before whose workers were ready.

    Raises:
        BadRequest: there is none, or its workers are the same.
    """
    if number is None:
        good = last_good(found, latest)
        if good is None:
            raise BadRequest("no earlier release has had a ready worker; name one by its number")
        return good
    target = next((release for release in found if release.number == number), None)
    if target is None:
        kept = ", ".join(str(release.number) for release in found)
        raise BadRequest(f"there is no release {number}; the releases are {kept}")
    if target.id == latest.id:
        raise BadRequest(f"release {latest.number} has the same workers as release {number}")
    return target


def must_roll_back(release: Release, failures_count: int) -> bool:
    """Whether ``autoRollback`` gives a release up, after so many failed starts in a row."""
    return release.ready_ms is None and failures_count >= FAILURES_ROLL_BACK


# In words.


def image_words(images: Mapping[str, HostImage]) -> str:
    """What the image of a release waits for on the first host that does not have it; "": each one has it."""
    waits = [f"host {host}: {image.words}" for host, image in sorted(images.items()) if image.words]
    return waits[0] if waits else ""


def state(
    release: Release,
    rollout: Rollout,
    workers: Mapping[str, int],
    *,
    waits_for: str = "",
    failing: str = "",
) -> str:
    """The state of a release in words.

    Args:
        release: one of the endpoint's.
        rollout: the endpoint's.
        workers: number of live workers by the id of their release.
        waits_for: why the next release cannot begin, see :class:`Prepared`.
        failing: why the current release's workers do not start; "" if they do.
    """
    if rollout.next is not None and release.number == rollout.next.number:
        return f"prepares: {waits_for}" if waits_for else "prepares"
    if release.ended:
        return f"given up: {release.ended}"
    if rollout.current is not None and release.number == rollout.current.number:
        if failing:
            return f"fails: {failing}"
        others = sum(count for name, count in workers.items() if name != release.id)
        if others:
            mine = workers.get(release.id, 0)
            return f"rolls out: {mine} of {mine + others} workers have it"
        return "current"
    return "earlier"
