"""The frontends: the transports on which clients reach the gateway.

`request_handler` answers requests in both eras, for every transport. `http` has the endpoint, authentication and the
HTTP exchange; `legacy` the sessions, streamable HTTP and SSE; `modern` the stateless era over HTTP; `stdio` serves both
eras over a pipe. The transports do not import one another.
"""
