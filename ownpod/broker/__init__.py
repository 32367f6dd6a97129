"""The use of Celery: names of queues and tasks, messages, remote commands, and changes to Celery itself.

Imports the rules, the store and the registry. Only ``workarounds`` changes what Celery and kombu do.
"""
