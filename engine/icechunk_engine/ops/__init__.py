"""Maintenance: independent functions on a repository, and the entries of its ops log."""

from icechunk_engine.catalog.ops_log_entries import Update, UpdateType

__all__ = ["Update", "UpdateType"]
