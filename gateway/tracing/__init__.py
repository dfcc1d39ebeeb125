"""Spans and durations of requests, exported with OpenTelemetry; nothing of it runs unless configured.

`spans` records what happens to a request in plain objects, `durations` counts, and `exporting` alone knows the SDK: its
thread converts what was recorded and sends it. On the gateway's thread, the SDK's own spans cost five times as much.
"""
