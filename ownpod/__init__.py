"""OwnPod: the RunPod v2 API for the RunPod worker containers you run yourself.

``api`` turns requests into job records and Celery messages in Redis, ``supervisor`` runs one Celery node for each
worker, and ``node`` runs jobs on its worker. Each folder is a floor, and imports only from floors below;
``docs/architecture.md`` explains them.
"""
