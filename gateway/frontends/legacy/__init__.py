"""The legacy era over HTTP: sessions, streamable HTTP, SSE, resumption."""
