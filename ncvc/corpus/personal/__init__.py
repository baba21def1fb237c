"""Personal data: found, masked, measured."""
