"""Documents out of files of every kind."""
