"""The front (``ownpod front``): HAProxy before the API and before the workers of load-balanced endpoints, and the edge that configures it while it runs.

Imports the rules, the settings, ``store``, ``registry`` and ``processes``, and neither Celery nor Flask. Only this floor knows HAProxy. No
byte of a request passes through Python.
"""
