"""Who may do what: principals, the keys and tokens that prove them, their rules and rates.

A frontend asks `Access` who sent a request before it does anything else with it; the router asks it whether that
principal may have one more call. Nothing in here knows JSON-RPC or a frontend.
"""
