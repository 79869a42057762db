"""The serving door: an OpenAI-compatible gateway that answers with the champion and captures.

    trueup.gateway.app.create_app    the ASGI app
    trueup.gateway.serve.serve       run it

Importing this package loads no web framework; the modules inside do.
"""

from trueup.gateway.config import ServeConfig

__all__ = ["ServeConfig"]
