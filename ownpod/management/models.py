"""The managing calls of models: what hosts have, and what they are to fetch, remove and keep."""

from collections.abc import Callable, Sequence
from typing import Any

from ownpod.errors import BadRequest
from ownpod.preset_errors import ModelNotFound
from ownpod.registry import Registry
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo
from ownpod.rules.model_news import News, describe_models
from ownpod.rules.models import FILE, PLACED, ModelSource, check_id
from ownpod.store.models import FETCH, REMOVE, Models


class ModelCalls:
    """Lists, fetches, removes and pins models. All calls may raise RedisUnavailable.

    Args:
        stored: what hosts know, and are asked.
        registry: the presets, which have the models' sources.
        agents: all hosts.
    """

    def __init__(
        self, stored: Models, registry: Registry, agents: Callable[[], Sequence[AgentInfo]]
    ) -> None:
        self._stored = stored
        self._registry = registry
        self._agents = agents

    def all(self) -> list[dict[str, Any]]:
        """All models by id: those of presets, and those that hosts have, with the progress of each host."""
        return describe_models(self._sources(), self.news(), self._stored.pinned())

    def news(self) -> dict[str, list[News]]:
        """What each host knows of its models."""
        return self._stored.news([agent.host for agent in self._agents()])

    def fetches(self) -> dict[str, dict[str, int]]:
        """How many fetches of each host have ended, by :class:`ownpod.rules.model_news.State`."""
        return self._stored.fetches([agent.host for agent in self._agents()])

    def get(self, model_id: str) -> dict[str, Any]:
        """One of them. Raises: ModelNotFound."""
        for model in self.all():
            if model["id"] == model_id:
                return model
        raise ModelNotFound(model_id)

    def fetch(self, model_id: str, host: str = "") -> list[str]:
        """Asks a host to fetch a model, or all hosts that answer. Returns their names.

        Raises:
            ModelNotFound: no preset has the model.
            BadRequest: there is no such host, or nothing of this model is fetched.
        """
        sources = [source for source in self._sources() if source.id == _checked(model_id)]
        if not sources:
            raise ModelNotFound(model_id)
        fetched = [source for source in sources if source.kind not in {FILE, PLACED}]
        if not fetched:
            raise BadRequest(f"model {model_id!r} is used where it is, so it is not fetched")
        return self._order(FETCH, fetched, self._hosts(host))

    def remove(self, model_id: str, host: str = "") -> list[str]:
        """Asks a host to remove a model, or all hosts that have it. Returns their names.

        Raises:
            ModelNotFound: no preset has the model, and no host.
            BadRequest: there is no such host, or a worker has the model.
        """
        self.get(_checked(model_id))
        named = self._hosts(host) if host else []
        news = {
            name: [one for one in found if one.id == model_id]
            for name, found in self.news().items()
            if not host or name in named
        }
        used = sorted({w for found in news.values() for one in found for w in one.workers})
        if used:
            raise BadRequest(f"model {model_id!r} is in use by worker {', '.join(used)}")
        known = {source.key: source for source in self._sources()}
        asked = set()
        for name, found in news.items():
            for one in found:
                source = known.get(one.key) or one.origin
                if source is not None:
                    self._stored.order(name, REMOVE, source)
                    asked.add(name)
        return sorted(asked)

    def pin(self, model_id: str, *, pinned: bool) -> bool:
        """Keeps a model on the hosts that have it, or no longer. False: nothing changes.

        Raises:
            ModelNotFound: no preset has the model, and no host.
        """
        _checked(model_id)
        if pinned:
            self.get(model_id)
        return self._stored.pin(model_id, pinned=pinned)

    def _order(self, do: str, sources: Sequence[ModelSource], hosts: Sequence[str]) -> list[str]:
        for host in hosts:
            for source in sources:
                self._stored.order(host, do, source)
        return sorted(hosts)

    def _hosts(self, host: str) -> Sequence[str]:
        alive = [agent.host for agent in self._agents() if agent.silent_s <= HOST_SILENT_S]
        if host and host not in alive:
            raise BadRequest(f"host {host[:80]!r} must be one of {', '.join(alive) or 'none'}")
        if not alive:
            raise BadRequest("no agent is running, so no host can fetch a model")
        return [host] if host else alive

    def _sources(self) -> list[ModelSource]:
        """The sources of all presets' models, each once."""
        found: dict[str, ModelSource] = {}
        for endpoint in self._registry.newer().values():
            one_off = endpoint.preset.one_off if endpoint.preset else None
            for spec in (endpoint.managed, one_off):
                if spec is not None and spec.template.model is not None:
                    found.setdefault(spec.template.model.key, spec.template.model)
        return list(found.values())


def _checked(model_id: str) -> str:
    try:
        return check_id(model_id)
    except ValueError as error:
        raise BadRequest(str(error)) from None
