"""One task per backend, and the fleet of all of them.

`lifecycle` has the states, their transitions and the delays between restarts; `supervisor` owns one backend from enter
to exit; `per_client` owns one session for each client; `fleet` runs all supervisors under one nursery and publishes
their `catalog`. Only its supervisor opens, stops or restarts a backend: others set an event and ask for a snapshot.
"""
