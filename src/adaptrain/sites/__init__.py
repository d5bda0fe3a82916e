"""Sites: the points of an architecture in one live model. The only package that registers hooks."""

from adaptrain.sites.live import Sites

__all__ = ["Sites"]
