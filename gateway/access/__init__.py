"""Access control: principals, their credentials, rules and rates.

A frontend authenticates each request with `Access` before anything else; the router asks `Access` whether the principal
may start another call. Nothing in this package depends on JSON-RPC or on a frontend.
"""
