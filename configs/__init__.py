"""One file per experiment; `default` holds all fields."""
