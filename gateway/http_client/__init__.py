"""HTTP requests to backends: pooled connections, and the HTTP library for connections through a proxy."""
