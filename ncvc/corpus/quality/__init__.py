"""Which documents are worth reading: rules, and a classifier learned from a teacher."""
