"""What a worker gets of its model: mounts and environment. Pure.

Source: RunPod shows Hugging Face's cache at ``/runpod-volume/huggingface-cache/hub``; the GPU service mounts a model at
``/models``, and has its path in ``MODEL_PATH``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ownpod.rules.models import Manifest

MOUNT = "/models"
"""Where a container has its model."""

HUB_MOUNT = "/runpod-volume/huggingface-cache/hub"
"""Where RunPod's workers have Hugging Face's cache."""


@dataclass(frozen=True)
class ModelMount:
    """A model for a worker: what is mounted where, and its environment.

    Attributes:
        mounts: absolute directories of the host, or files, by their path in the container.
        env: what the worker's environment suggests; the template may replace it.
    """

    mounts: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


def model_mount(
    manifest: Manifest, root: str, *, container: bool, taken: Collection[str] = ()
) -> ModelMount:
    """What a worker gets of a model that is here.

    Args:
        manifest: of the model.
        root: the directory of all models on this host, an absolute path.
        container: whether the worker sees paths of its own, and not the host's.
        taken: paths in the container at which the template has volumes.

    Raises:
        ValueError: the template has a volume at the model's path.
    """
    source = manifest.source
    place = manifest.place if manifest.place.startswith("/") else f"{root}/{manifest.place}"
    inside = f"/{manifest.inside}" if manifest.inside else ""
    env = {"MODEL_PATH": f"{MOUNT if container else place}{inside}", "MODEL_NAME": source.name}
    mounts = {MOUNT: place}
    if container and any(path == MOUNT or path.startswith(f"{MOUNT}/") for path in taken):
        raise ValueError(f"template.volumes: {MOUNT} is the path of the model")
    if source.in_cache:
        # An engine would make the path of the cache within a volume that is above it.
        if not any(path == HUB_MOUNT or HUB_MOUNT.startswith(f"{path}/") for path in taken):
            mounts[HUB_MOUNT] = f"{root}/hub"
            env["HF_HUB_CACHE"] = HUB_MOUNT
        if not container:
            env["HF_HUB_CACHE"] = f"{root}/hub"
        if source.offline:
            env["HF_HUB_OFFLINE"] = "1"
    return ModelMount(mounts if container else {}, env)
