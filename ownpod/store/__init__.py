"""Everything in Redis: the only floor that knows redis-py, the names of keys and Lua.

Imports the rules, ``processes``, and the modules below the rules. Messages for Celery's queues come in as text, so that nothing
here imports Celery.
"""
