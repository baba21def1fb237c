"""Reading what runs left on disk: tables and figures. Nothing here is imported by training."""
