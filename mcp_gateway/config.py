"""`gateway.config`, for type checkers; at run time `mcp_gateway.config` is that module itself."""

from gateway.config import *
