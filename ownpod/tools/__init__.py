"""The commands: ``ownpod ...`` and OwnPod's own commands of ``celery``, for people and scripts.

Imports every floor, and is imported by none. A command that starts a part imports that part only when it
is used, because every command must start fast.
"""
