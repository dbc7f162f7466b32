"""Reading and writing image files, with the metadata that is preserved."""
