"""The agent (``ownpod agent``), one a host: it starts, watches and stops the managed workers of this host.

Imports the rules, the settings, ``store`` and ``processes``, and neither Celery nor Flask. Engines do the starting
behind one small interface (:mod:`ownpod.agent.engine`), and only here.
"""
