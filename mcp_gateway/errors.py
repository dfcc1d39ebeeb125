"""`gateway.errors`, for type checkers; at run time `mcp_gateway.errors` is that module itself."""

from gateway.errors import *
