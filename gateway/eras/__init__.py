"""Legacy <-> neutral <-> modern: everything that is spelled differently in the two protocol eras.

`versions` says which revisions there are, `methods` has one row for each method, `requests` turns a client's request
into a `Call` and a call into a backend's request, `results` spells outcomes for a client, `headers` checks the modern
HTTP headers, `errors` is the one place where the tree of errors meets JSON-RPC codes. Pure: no I/O, no state.
"""
