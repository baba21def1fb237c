"""Other analysers than Sudachi, and the names that all of them keep whole."""
