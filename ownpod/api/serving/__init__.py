"""gunicorn's settings and its worker: how requests arrive, and how slow clients are limited."""
