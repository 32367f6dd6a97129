"""The document at ``/openapi.json``, a module for each part."""
