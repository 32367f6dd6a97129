"""Celery's settings; they stand in :mod:`ownpod.celeryconfig`, which OwnPod itself loads."""

from ownpod.celeryconfig import *  # noqa: F403
