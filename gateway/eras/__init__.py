"""Legacy <-> neutral <-> modern: everything that is spelled differently in the two protocol eras.

`versions` has the revisions, `methods` one row for each method, `requests` turns a client's request into a `Call` and a
call into a backend's request, `results` encodes outcomes for a client, `headers` checks the modern HTTP headers,
`errors` maps the tree of errors to JSON-RPC codes. Pure: no I/O, no state.
"""
