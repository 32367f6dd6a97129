"""What hosts know of models, in words and as the API shows it. Pure."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ownpod.rules.images import size_words
from ownpod.rules.models import ModelSource


class State(StrEnum):
    """What a host does with a model."""

    WAITING = "waiting"
    """It is about to be fetched."""
    FETCHING = "fetching"
    CHECKING = "checking"
    """Its files are here, and are unpacked, or compared with their sizes and sums."""
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class News:
    """What a host knows of a model.

    Attributes:
        done: bytes that are here, while it is fetched; all of them once it is ready.
        total: its bytes; 0: not known.
        error: why it was not fetched or removed, in words for people.
        tries: number of failures in a row.
        used_ms: its last use, since the epoch by the host's clock; 0: none.
        workers: ids of the workers that have it.
    """

    key: str
    id: str
    source: str
    state: State
    done: int = 0
    total: int = 0
    error: str = ""
    tries: int = 0
    used_ms: int = 0
    workers: tuple[str, ...] = ()
    revision: str = ""
    origin: ModelSource | None = field(repr=False, default=None)
    """Names the model in an order, where no preset has it any more. Answers leave it out, because its URL may have secrets."""


@dataclass(frozen=True)
class Coming:
    """Why a worker cannot have its model yet. ``words``: for people; "": another host reports it."""

    words: str = ""
    done: int = 0
    total: int = 0
    failed: bool = False


def news_text(news: News) -> str:
    """News as JSON."""
    return json.dumps(asdict(news))


def news_in(text: str) -> News:
    """News in Redis. Raises: ValueError."""
    try:
        values = json.loads(text)
        values["workers"] = tuple(values.get("workers", ()))
        if values.get("origin") is not None:
            values["origin"] = ModelSource(**values["origin"])
        return News(**{**values, "state": State(values["state"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("it is no news of a model") from None


def progress_words(news: News) -> str:
    """Why a worker waits for its model, in words for people."""
    if news.state is State.FAILED:
        return f"model {news.id}: {news.error}"
    if news.state is State.WAITING or not (news.total or news.done):
        return f"model {news.id} is about to be fetched"
    verb = "checked" if news.state is State.CHECKING else "fetched"
    if not news.total:
        return f"model {news.id} is being {verb}: {size_words(news.done)}"
    share = min(news.done, news.total) * 100 // news.total
    return f"model {news.id} is being {verb}: {size_words(news.done)} of {size_words(news.total)}, {share} %"


def describe_news(host: str, news: News) -> dict[str, Any]:
    """A model on a host, as the API and the commands show it."""
    return {
        "host": host,
        "state": news.state.value,
        "done": news.done,
        "total": news.total,
        "source": news.source,
        "revision": news.revision,
        "error": news.error,
        "usedMs": news.used_ms,
        "workers": list(news.workers),
    }


def describe_models(
    sources: Iterable[ModelSource],
    news: Mapping[str, Sequence[News]],
    pinned: Collection[str] = (),
) -> list[dict[str, Any]]:
    """All models by id: those of presets, and those that hosts have."""
    found: dict[str, dict[str, Any]] = {}

    def of(model_id: str) -> dict[str, Any]:
        new = {"id": model_id, "sources": [], "pinned": model_id in pinned, "hosts": []}
        return found.setdefault(model_id, new)

    for source in sources:
        if source.shown not in of(source.id)["sources"]:
            found[source.id]["sources"].append(source.shown)
    for host, all_news in sorted(news.items()):
        for one in all_news:
            of(one.id)["hosts"].append(describe_news(host, one))
    return [found[model_id] for model_id in sorted(found)]
