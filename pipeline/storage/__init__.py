"""Bytes anywhere: filesystems, atomic writes, retries, redaction, walks.

Uses errors of the package and the core's paths to models; no Ray, no pyarrow."""
