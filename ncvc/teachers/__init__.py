"""Language models that write or label text."""
