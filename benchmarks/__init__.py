"""What the gateway costs, measured: `python -m benchmarks QUESTION` (call, list, startup, memory).

One module a question; its docstring states the question, the method and the unit. Everything runs on loopback, is
bounded in count and time, and compares within one run: absolute figures of a busy machine say little, ratios of
interleaved rounds say more. The clients are processes of their own and check every answer against its request.
"""
