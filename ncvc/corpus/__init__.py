"""Raw text to clean documents: readers, cleaning and what follows them."""
