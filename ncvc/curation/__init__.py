"""From raw corpora to clean, de-identified, deduplicated, leak-free segmented text, on datatrove's executors."""
