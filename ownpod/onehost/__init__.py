"""``ownpod up``: all parts on one host, with an embedded Redis if none is configured, and Flower as an option.

Imports the registry, the store and the floors below them; the API, the supervisor and Flower are started as
programs. Only the tools import this floor.
"""
