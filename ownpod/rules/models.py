"""Models: where one comes from, and what is known of it on a host. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSource:
    """A model that an endpoint's workers get, mounted read-only.

    Attributes:
        id: the model's id, as clients and ``ownpod models`` name it.
        source: the URL it is fetched from: ``hf://``, ``s3://``, ``https://``, ``file://`` or ``file-service:``.
        revision: of ``hf://``, the commit, tag or branch; "": the default branch.
        flat: the worker gets real files at ``/models`` instead of Hugging Face's cache with its links.
        offline: the worker's environment forbids requests to the hub.
    """

    id: str
    source: str
    revision: str = ""
    flat: bool = False
    offline: bool = True
