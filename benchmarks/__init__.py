"""Benchmarks of the gateway: `python -m benchmarks QUESTION` (call, list, startup, memory).

One module per question; its docstring states the question, the method and the unit. Everything runs on loopback, is
bounded in count and time, and compares within one run: absolute figures of a busy machine say little, ratios of
interleaved rounds say more. The clients are separate processes and check every answer against its request.
"""
