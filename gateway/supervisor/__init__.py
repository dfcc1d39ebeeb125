"""One task per backend, and the fleet of all of them.

`states` is the table of what may follow what, `restart` the arithmetic of backoff, `supervisor` owns one backend from
enter to exit, `fleet` runs all supervisors under one nursery and keeps the catalog of what they offer. Nobody but its
supervisor opens, stops or restarts a backend: others set an event and ask for a snapshot.
"""
