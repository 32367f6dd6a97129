"""The rules: what a job, a run, an endpoint and a worker are, and every decision about them. Pure.

Imports only ``errors``, ``validation`` and itself. No Redis, HTTP, Flask, Celery, clock or environment:
time comes in as an argument.
"""
