"""HTML reports, charts and sheets of images."""
