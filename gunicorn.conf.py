"""gunicorn reads this by itself in this directory: OwnPod's settings for it."""

from ownpod.api.server import *  # noqa: F403
