"""Sites: the points of an architecture in one live model. The only package that registers hooks."""

from adaptrain.sites.blocks import resolve
from adaptrain.sites.given import beginning, routed
from adaptrain.sites.live import Sites
from adaptrain.sites.paths import table_for
from adaptrain.sites.rows import repeated, rows_of, taken

__all__ = ["Sites", "beginning", "repeated", "resolve", "routed", "rows_of", "table_for", "taken"]
