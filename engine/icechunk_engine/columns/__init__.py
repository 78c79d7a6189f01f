"""Numpy columns: tables of byte strings, and chunk references."""
