"""The application for any WSGI server: ``gunicorn wsgi:app``."""

from ownpod import settings
from ownpod.api import create_app
from ownpod.errors import ConfigurationError

try:
    app = create_app(settings.current())
except ConfigurationError as error:
    settings.exit_on(error)
