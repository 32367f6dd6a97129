"""OwnPod: the RunPod v2 API for the RunPod worker containers you run yourself.

``api`` turns requests into job records and Celery messages, ``dispatch`` runs one Celery node for
each worker URL, ``tasks`` hands a job to its worker. ``docs/architecture.md`` has the picture.
"""
