"""A snapshot and the uncommitted edits on top of it: what sessions, stores and importers read and edit."""
