"""``/metrics``, a module for each part."""
