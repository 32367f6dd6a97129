"""The use of Celery: names of queues and tasks, messages, remote commands, and changes to Celery itself.

Imports the registry, the store and every floor below them. Only ``workarounds`` changes what Celery and kombu do.
"""
