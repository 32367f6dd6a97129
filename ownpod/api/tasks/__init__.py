"""Tasks and sessions under the GPU service's paths."""
