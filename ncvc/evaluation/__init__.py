"""Benchmarks: their rows as conversations, the splits that tuning and evaluation share, the written form of answers."""
