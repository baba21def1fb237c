"""Text written by teachers, with its provenance."""
