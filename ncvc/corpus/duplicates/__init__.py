"""Documents that repeat others."""
