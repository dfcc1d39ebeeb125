"""Backends over HTTP: streamable HTTP and the older SSE transport."""
