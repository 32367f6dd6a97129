"""What goes over Celery's wire: names of queues and tasks, messages, remote commands, and what works around Celery.

Imports the rules, the store and the registry. Only ``workarounds`` uses what Celery and kombu do not document.
"""
