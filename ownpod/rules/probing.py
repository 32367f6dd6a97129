"""The health check of load-balanced workers: which request it is, and what its answer means, in words for people. Pure."""

from dataclasses import dataclass, replace

from ownpod.rules.balancing import Balancing, Server
from ownpod.rules.homes import joined

READY, STARTING = 200, 204
"""RunPod's statuses of a worker that may get requests, and of one that still starts."""

PATIENCE_S = 10.0
"""Seconds in which a worker that OwnPod has just started need not listen: programs load first, and listen afterwards."""


@dataclass(frozen=True)
class Target:
    """The health check of a worker.

    Attributes:
        server: the worker.
        path: the path of the check.
        managed: OwnPod started the worker, with ``PORT`` and the other variables in its environment.
    """

    server: Server
    path: str
    managed: bool = False

    @property
    def port(self) -> int:
        """The port that is asked."""
        return self.server.health_port or self.server.port


@dataclass(frozen=True)
class Verdict:
    """What is known of a worker by its health check.

    Attributes:
        ready: it has answered with 200, and gets requests.
        starting: it has answered with 204, was not asked yet, or was just started.
        reason: why it is not ready, in words.
        lost: it was ready before.
        refused: nothing listens on its port.
    """

    ready: bool = False
    starting: bool = False
    reason: str = ""
    lost: bool = False
    refused: bool = False


UNASKED = Verdict(starting=True, reason="its health check was not asked yet")
HEALTHY = Verdict(ready=True)


def target_of(server: Server, balancing: Balancing, *, managed: bool) -> Target:
    """The health check of an endpoint's worker."""
    return Target(server, balancing.health_path, managed)


def verdict_of(status: int, target: Target) -> Verdict:
    """What the status of an answer means."""
    if status == READY:
        return HEALTHY
    if status == STARTING:
        return Verdict(starting=True, reason=f"it answers 204 on {target.path}, so it still starts")
    name = "HEALTH_CHECK_PATH" if target.managed else "healthPath"
    hint = {
        401: ": the health check is sent without a key",
        403: ": the health check is sent without a key",
        404: f": is {name} right?",
        405: ": the health check is a GET",
    }.get(status, "")
    if 300 <= status < 400:
        hint = ": only 200 means ready"
    return Verdict(reason=f"{status} on {target.path}{hint}")


def refused(target: Target, port: int) -> Verdict:
    """Nothing listens on a port of the worker."""
    where = joined(target.server.host, port)
    if target.managed:
        variable = "PORT" if port == target.server.port else "PORT_HEALTH"
        ask = f"does it listen on {variable}, and on 0.0.0.0 rather than 127.0.0.1?"
    else:
        ask = "does it listen there, and on 0.0.0.0 rather than 127.0.0.1?"
    return Verdict(reason=f"connection refused on {where}: {ask}", refused=True)


def soon(verdict: Verdict, target: Target, since_s: float) -> Verdict:
    """What a check means so many seconds after the first one: a question about its port would mislead at each normal start."""
    if verdict.refused and target.managed and since_s < PATIENCE_S:
        return replace(verdict, starting=True, reason="nothing listens on its port yet")
    return verdict


def unreachable(target: Target, port: int, problem: str) -> Verdict:
    """There is no way to the worker, or its name has no address."""
    return Verdict(reason=f"{joined(target.server.host, port)} cannot be reached: {problem}")


def no_connection(target: Target, port: int, within_s: float) -> Verdict:
    """The connection was neither accepted nor refused in time."""
    where = joined(target.server.host, port)
    return Verdict(
        reason=f"no connection to {where} within {within_s:g} s: is the address right, and does a firewall drop it?"
    )


def no_answer(target: Target, within_s: float) -> Verdict:
    """The worker accepted the connection, and did not answer."""
    where = joined(target.server.host, target.port)
    return Verdict(reason=f"no answer to GET {target.path} on {where} within {within_s:g} s")


def cut(target: Target) -> Verdict:
    """The worker closed the connection without an answer."""
    where = joined(target.server.host, target.port)
    return Verdict(
        reason=f"{where} closed the connection without an answer: is this its HTTP port?"
    )


def not_http(target: Target) -> Verdict:
    """The answer is not HTTP."""
    where = joined(target.server.host, target.port)
    hint = "" if target.server.tls else ", or must its URL begin with https://"
    return Verdict(reason=f"{where} does not answer in HTTP: is this its HTTP port{hint}?")


def tls_failed(target: Target, problem: str, *, certificate: bool) -> Verdict:
    """TLS failed. ``certificate``: because its certificate is not trusted."""
    where = joined(target.server.host, target.port)
    ask = (
        "set `caBundle`, or `verifyTls: false`"
        if certificate
        else "must its URL begin with http://?"
    )
    return Verdict(reason=f"TLS with {where} failed: {problem}; {ask}")
