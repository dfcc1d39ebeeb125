"""Child processes: start, shutdown sequence, process tree, and the sentinel that outlives the gateway."""
