"""Synthetic Japanese clinical text written for this repository: the quickstart's corpus (``samples`` is its door)."""
