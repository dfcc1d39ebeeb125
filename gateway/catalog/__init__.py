"""What all backends offer, under public names.

`listing` turns one backend's raw lists into clean items (`salvage` those of an answer that is no JSON), `offers`
chooses and describes tools, `names` gives public names, `parts` holds one backend's items under them, `ownership` and
`uris` say who owns which URI, `scopes` narrows to what one caller sees, and `snapshot` merges parts into an immutable
whole: a table that routes, and lists already encoded.
Pure: no I/O; a snapshot never changes, it is replaced.
"""
