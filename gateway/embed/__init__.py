"""The gateway inside another program.

`manager` has `ProxyManager`, for programs on any loop or none; `native` has `open_gateway`, for programs on trio. Both
are exported by `gateway` itself, which imports them on first use. Only this package touches asyncio (`host`), only to
reach the program's tasks: the gateway itself runs on trio, in its own thread where the program does not.
"""
