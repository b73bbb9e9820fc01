"""Bytes anywhere: filesystems, atomic writes, retries, redaction, walks.

Uses the rows and errors of the package, nothing else of it."""
