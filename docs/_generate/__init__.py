"""Writes the pages of ``docs/reference`` and the picture of the chain from code and data; run by ``bin/make-docs``."""
