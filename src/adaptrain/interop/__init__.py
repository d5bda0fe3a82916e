"""Adapter files of other libraries."""

from adaptrain.interop import adapterhub

__all__ = ["adapterhub"]
