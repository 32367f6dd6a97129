"""One process for one worker: a Celery node that takes the worker's jobs and runs them there.

Imports the drivers in ``workers`` and everything below, and no ``housekeeping``. One node runs one worker at a time,
and one worker is run by one node at a time.
"""
