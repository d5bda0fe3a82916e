"""Sites: the points of an architecture in one live model. The only package that registers hooks."""

from adaptrain.sites.live import Sites
from adaptrain.sites.paths import table_for
from adaptrain.sites.rows import repeated

__all__ = ["Sites", "repeated", "table_for"]
