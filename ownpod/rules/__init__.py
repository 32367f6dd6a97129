"""The rules: values like a job, a run, an endpoint and a worker, and every decision about them.

Imports only ``errors``, ``validation`` and itself. This floor is pure: no Redis, HTTP, Flask, Celery, clock or
environment. Times are arguments.
"""
