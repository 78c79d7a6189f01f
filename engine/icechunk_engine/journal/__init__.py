"""The journal of a session: the edits that its workers report, stored beside the repository until the commit."""
