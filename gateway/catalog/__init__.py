"""The catalog: everything that the backends offer, under public names.

`listing` turns one backend's raw lists into valid items (`salvage` recovers items from invalid JSON), `offers` selects
and describes tools, `names` makes public names, `parts` holds one backend's items under them, `ownership` and `uris`
resolve URIs to backends, `scopes` narrows to one caller's scope, and `snapshot` merges parts into an immutable routing
table with encoded lists. Pure: no I/O. Snapshots are replaced, never changed.
"""
