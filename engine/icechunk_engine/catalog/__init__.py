"""Refs and history of a repository, in either spec version: reading them, changing them, showing them."""
