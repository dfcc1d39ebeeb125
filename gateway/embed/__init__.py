"""The gateway inside another program.

`manager` has `ProxyManager`, for programs on any loop or none; `native` has `open_gateway`, for programs on trio. Both
are exported by `gateway` itself, which imports them on first use. Only this package uses asyncio (`host`), and only to
reach the program's tasks: the gateway runs on trio, in a separate thread unless the program does too.
"""
