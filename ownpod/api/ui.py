"""The page at ``/``: jobs, queue and workers of an endpoint in a browser.

The files in ``page/`` load nothing from other sites. The page's script calls the API under ``/v2`` with the key that
the user enters, so the page shows no more than the key permits.
"""

from flask import Blueprint, Response, send_from_directory

blueprint = Blueprint("ui", __name__, static_folder="page", static_url_path="/page")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: http: https:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the page loads only its own files, and images to which a job's output links."""


@blueprint.get("/")
def page() -> Response:
    """The page's HTML, which contains no data."""
    folder = blueprint.static_folder or ""
    response = send_from_directory(folder, "index.html")
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
