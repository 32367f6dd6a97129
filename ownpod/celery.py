"""The Celery application: ``celery -A ownpod ...`` finds it here. Settings: ``celeryconfig.py``."""

from celery import Celery

from ownpod import workarounds

workarounds.apply()

app = Celery("ownpod", include=["ownpod.tasks", "ownpod.node"])
app.config_from_object("celeryconfig")
