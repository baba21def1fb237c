"""Benchmark texts in a corpus: found before training, and asked about after it."""
