"""``ownpod up``: all parts on one host, with an embedded Redis and Flower where they are wanted.

Imports everything but the tools. Nothing imports this floor but the command line.
"""
