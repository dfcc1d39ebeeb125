"""What all backends offer, under public names.

`kinds` names the kinds of things that are listed, `listing` turns one backend's raw lists into clean items, `names`
gives public names, `snapshot` merges listings into an immutable whole: a table that routes, and lists already encoded.
Pure: no I/O; a snapshot never changes, it is replaced.
"""
