"""Config changes at run time: from file, signal and management API, along one path.

`source` reads and validates, `overlay` holds the changes over the API, `watch` detects changes of the file, and
`reloader` applies one change at a time: read, validate everything, then pass the whole to the fleet. An invalid config
changes nothing.
"""
