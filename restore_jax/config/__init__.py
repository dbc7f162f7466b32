"""A run's configuration and its folder."""
