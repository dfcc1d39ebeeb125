"""Other configs while the gateway runs: from the file, on a signal, over the management API; one path for all.

`source` reads and validates, `overlay` holds what was changed over the API, `watch` tells when the file is another one,
and `reloader` does one change at a time: read, validate all, then hand the whole to the fleet. Nothing is changed by
what is not valid as a whole.
"""
