"""Celery's settings, for ``celery`` commands in this folder. OwnPod itself loads :mod:`ownpod.celeryconfig`."""

from ownpod.celeryconfig import *  # noqa: F403
