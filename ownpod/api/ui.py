"""The page at ``/``: the state of workers and jobs, for people. Its files are in ``page/``.

The page loads files of this package only. It reads ``/v2`` as any client does, with the key that the user enters.
"""

from flask import Blueprint, Response, send_from_directory

blueprint = Blueprint("ui", __name__, static_folder="page", static_url_path="/page")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: http: https:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: from other servers it loads only images that an output links to."""


@blueprint.get("/")
def page() -> Response:
    """``page/index.html``, with headers that restrict what the page may load."""
    folder = blueprint.static_folder or ""
    response = send_from_directory(folder, "index.html")
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
