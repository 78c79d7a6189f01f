"""Maintenance: independent functions on a repository; and the records of what was done to it."""

from icechunk_engine.catalog.updates import Update, UpdateType

__all__ = ["Update", "UpdateType"]
