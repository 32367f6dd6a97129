"""What is done once for all nodes: the sweep, the recovery of lost messages, webhooks.

Imports the store, the registry, the broker and ``node.signals``, and no driver. Every step may fail alone, because
the other steps are needed by every job.
"""
