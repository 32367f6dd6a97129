"""``ownpod up``: all parts on one host, with an embedded Redis if none is configured, and Flower as an option.

Imports every floor but the tools. Only the tools import this floor.
"""
