"""One file per experiment; `default` holds every field there is."""
