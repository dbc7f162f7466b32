"""Restores the image files of folders: plan, read ahead, restore, write, table and page."""
