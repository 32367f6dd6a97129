"""gunicorn's settings for OwnPod. gunicorn reads this file if it is started in this directory."""

from ownpod.api.serving.server import *  # noqa: F403
