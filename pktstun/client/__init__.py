"""The STUN clients: one question, what a NAT does, and latency over time.

`query` asks for this host's address, over UDP, TCP or TLS, with credentials if the server wants
them. `discover` finds out how a NAT or firewall on the way behaves (RFC 5780). `watch` asks again
and again. All of them know the codec alone, and run without the compiled module.

Where a server is, is one list of addresses for all of them: `parse_server` reads what a person
types, a `stun:` URI included, and `locate` asks the DNS.
"""

from __future__ import annotations

from ._credentials import Credentials
from ._monitor import SHORTEST_INTERVAL, Sample, Summary, watch
from ._nat import Behaviour, NatReport, NatUnsupportedError, discover, explain
from ._query import QueryResult, query, query_any
from ._servers import (
    TLS_PORT,
    QueryError,
    ServerName,
    Transport,
    locate,
    parse_server,
    resolve,
)
from ._transport import Tls

__all__ = [
    "SHORTEST_INTERVAL",
    "TLS_PORT",
    "Behaviour",
    "Credentials",
    "NatReport",
    "NatUnsupportedError",
    "QueryError",
    "QueryResult",
    "Sample",
    "ServerName",
    "Summary",
    "Tls",
    "Transport",
    "discover",
    "explain",
    "locate",
    "parse_server",
    "query",
    "query_any",
    "resolve",
    "watch",
]
