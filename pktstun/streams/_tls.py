"""TLS for the stream server: its settings, its certificate, and the records of a connection.

Theory of operation: a connection's records go through two buffers in memory
(`ssl.SSLContext.wrap_bio`), so that the connection reads and writes its socket in one way with
TLS and without. asyncio's own TLS transport would do that, too, and hold a buffer of 256 KiB for
each connection.

Settings follow RFC 9325: TLS 1.2 with ephemeral keys and AEAD, or TLS 1.3; no renegotiation, no
compression. No tickets are issued: their key would live as long as the process, and a client that
keeps its connection, as RFC 8489 wants it, needs none. (What Python's ssl cannot switch off is the
cache of TLS 1.2's sessions: within a process, one can be resumed by its id.)

A certificate is looked at before anything depends on it: in a child process that is the user
whom the service will become, so that what it cannot read is known while everything still is as
it was. And so the key never is in the memory of the supervisor, whose forks read packets.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pktstun.errors import ConfigError

if TYPE_CHECKING:
    import pwd

__all__ = ["ALPN", "CertificateFiles", "TlsSession", "check_certificate", "server_context"]

ALPN = "stun.nat-discovery"
"""RFC 7443 section 3: the application protocol of STUN without TURN."""

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: RFC 9325 section 4.2, and ChaCha20-Poly1305 (RFC 7905); those of TLS 1.3 are all
of this kind."""

_NO_CHECK_TIME = 0x20_0000  # X509_V_FLAG_NO_CHECK_TIME, <openssl/x509_vfy.h>
_READ_SIZE = 16384  # what a record holds at most (RFC 8446 section 5.1)
_PIECE = 256
_SOON = 7 * 24 * 3600
"""Seconds before the end of a certificate from which on it is worth a warning."""


class CertificateFiles(NamedTuple):
    """Where a certificate is."""

    chain: str
    """PEM: the certificate, and those between it and the root."""
    key: str
    """PEM: the private key; may be the same file."""


def server_context(files: CertificateFiles) -> ssl.SSLContext:
    """Return the settings of a TLS server with this certificate.

    Raises:
        OSError: a file cannot be read; ssl.SSLError is one, too: it is of no use.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_NO_TICKET
        | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    # Without a password there would be a question on the terminal.
    context.load_cert_chain(files.chain, files.key, password="")
    return context


class TlsSession:
    """The server's end of one TLS connection; bytes in, bytes out.

    Args:
        context: the settings.
    """

    __slots__ = ("_incoming", "_outgoing", "_session", "has_ended", "is_established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_established = False
        self.has_ended = False
        """Whether the client has said that nothing more comes."""

    def receive(self, data: bytes) -> bytes:
        """Take in what came from the client; return what it holds for the application.

        Raises:
            ssl.SSLError: it is no TLS, or not what this server speaks. `outgoing` has an alert.
        """
        plain = b""
        # Little by little, so that the buffer, which never shrinks, stays small.
        for at in range(0, len(data), _PIECE):
            self._incoming.write(data[at : at + _PIECE])
            plain += self._advance()
        return plain

    def _advance(self) -> bytes:
        plain = b""
        try:
            if not self.is_established:
                self._session.do_handshake()
                self.is_established = True
            while chunk := self._session.read(_READ_SIZE):
                plain += chunk
            self.has_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        return plain

    def send(self, data: bytes) -> None:
        """Have this for the client: in `outgoing`."""
        self._session.write(data)

    def end(self) -> None:
        """Say to the client that nothing more comes: in `outgoing`."""
        with suppress(ssl.SSLError):  # it would wait for the client's word
            self._session.unwrap()

    def outgoing(self) -> bytes:
        """Return what has to be sent now."""
        return self._outgoing.read()


def check_certificate(files: CertificateFiles, user: pwd.struct_passwd | None) -> list[str]:
    """Find out whether a service can use a certificate.

    Args:
        files: the certificate and its key.
        user: who the service will be; None for who this process is.

    Returns:
        What an operator should know: it has expired, or will soon, or clients will refuse it.

    Raises:
        ConfigError: it cannot be used; the text names the fix.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    # A signal to the child would count as one to this process, whose wake-up pipe it shares.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
        if child == 0:
            _examine_and_exit(files, user, write)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise ConfigError(f"--tls-certificate {files.chain}: it cannot be looked at")
    found = _Found(**json.loads(said))
    if found.error:
        raise ConfigError(found.error)
    return found.warnings(files)


class _Found(NamedTuple):
    """What the child process has found out."""

    error: str = ""
    refused: str = ""
    """Why clients will refuse the certificate."""
    begin: str = ""
    """From when on it is valid, and until when, in the words of OpenSSL."""
    end: str = ""

    def warnings(self, files: CertificateFiles) -> list[str]:
        if self.refused:
            return [f"clients will refuse the certificate {files.chain}: {self.refused}"]
        begin, end = map(ssl.cert_time_to_seconds, (self.begin, self.end))
        now = time.time()
        if now > end:
            return [f"the certificate {files.chain} has expired, on {self.end}"]
        if now < begin:
            return [f"the certificate {files.chain} is not valid before {self.begin}"]
        if end - now < _SOON:
            return [f"the certificate {files.chain} expires on {self.end}"]
        return []


def _examine_and_exit(files: CertificateFiles, user: pwd.struct_passwd | None, write: int) -> None:
    try:
        if user is not None:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        try:
            found = _examine(files, user)
        except ConfigError as error:
            found = _Found(error=str(error))
        os.write(write, json.dumps(found._asdict()).encode())
    finally:
        os._exit(0)


def _examine(files: CertificateFiles, user: pwd.struct_passwd | None) -> _Found:
    chain = _read("--tls-certificate", files.chain, user)
    key = _read("--tls-key", files.key, user)
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise ConfigError(
            f"--tls-certificate {files.chain}: there is no certificate in it (PEM, "
            "'-----BEGIN CERTIFICATE-----')"
        )
    if b"PRIVATE KEY-----" not in key:
        raise ConfigError(
            f"--tls-key {files.key}: there is no private key in it (PEM, "
            "'-----BEGIN PRIVATE KEY-----')"
        )
    if b"ENCRYPTED" in key:
        raise ConfigError(
            f"--tls-key {files.key}: the key has a password, and a service cannot be asked for "
            "it: store it without ('openssl pkey -in FILE -out FILE')"
        )
    try:
        context = server_context(files)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"--tls-key {files.key}: the key does not belong to the certificate "
                f"{files.chain}, which must be the first in its file"
            ) from error
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise ConfigError(
            f"--tls-certificate {files.chain}, --tls-key {files.key}: of no use: {reason}"
        ) from error
    return _try_out(context, files)


def _read(option: str, name: str, user: pwd.struct_passwd | None) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        who = ""
        if isinstance(error, PermissionError):
            whose = user.pw_name if user is not None else "the service's user"
            who = f": {whose} must be able to read it, also for a reload"
        raise ConfigError(f"{option}: cannot read {name}: {error.strerror}{who}") from error


def _try_out(context: ssl.SSLContext, files: CertificateFiles) -> _Found:
    """Have a client that trusts this very certificate connect to the server, in memory."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    trusting.load_verify_locations(files.chain)
    server = TlsSession(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(incoming, outgoing)
    try:
        while not server.is_established:
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
            server.receive(outgoing.read())
            incoming.write(server.outgoing())
        found = client.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return _Found(refused=error.verify_message)
    except ssl.SSLError as error:
        return _Found(refused=error.reason)
    return _Found(begin=str(found["notBefore"]), end=str(found["notAfter"]))
