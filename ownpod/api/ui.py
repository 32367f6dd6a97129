"""The page at ``/``: what the workers do, for people. Its files stand in ``page/``.

It is made of files of this package only, and shows what a program can read under ``/v2``, with the key
that a reader enters.
"""

from flask import Blueprint, Response, send_from_directory

blueprint = Blueprint("ui", __name__, static_folder="page", static_url_path="/page")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: http: https:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing from elsewhere but the pictures that an output links to."""


@blueprint.get("/")
def page() -> Response:
    """The page."""
    folder = blueprint.static_folder or ""
    response = send_from_directory(folder, "index.html")
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
