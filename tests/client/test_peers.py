"""`pktstun query` and a server with long-term credentials: coturn, over UDP, TCP and TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pktstun.client import Credentials, QueryError, Tls, Transport, query
from pktstun.stun import TransportAddress
from tests.client.peers import turnserver
from tests.client.servers import AUTHORITY, CERTIFICATES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.peers]

ME = Credentials("user", "secret")


def test_long_term_credentials(lab: Lab, tmp_path: Path) -> None:
    host = lab.namespace("host")
    certificate = CERTIFICATES / "server.pem"
    options = ["--secure-stun", "--lt-cred-mech", "--user=user:secret", "--realm=example.org"]
    listens = ["-L", "127.0.0.1", f"--cert={certificate}", f"--pkey={certificate}"]
    at = TransportAddress.parse("127.0.0.1:3478")
    tls = Tls(ca=AUTHORITY)
    with turnserver(host, tmp_path, [*options, *listens], [at]), host.enter():
        for transport in Transport:
            server = TransportAddress(at.ip, transport.default_port)
            found = query(server, timeout=5, transport=transport, credentials=ME, tls=tls)
            assert found.mapped == found.local
            assert (found.integrity, found.realm) == ("MESSAGE-INTEGRITY", "example.org")
            wrong = Credentials("user", "wrong")
            with pytest.raises(QueryError, match=r"refuses username or password.*401"):
                query(server, timeout=5, transport=transport, credentials=wrong, tls=tls)
