"""The trust map: how wrong a restored pixel may be, with calibrated 90 % intervals."""
