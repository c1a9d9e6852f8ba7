"""HiveFS: an encrypted, erasure-coded drive that no single authority controls."""

__version__ = "0.1.0"
