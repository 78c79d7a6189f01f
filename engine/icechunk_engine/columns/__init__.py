"""Numpy columns: tables of byte strings, chunk references, and how to find rows among them."""
