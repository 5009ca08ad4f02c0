"""The data path's HTTP client over TLS."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.service.http.raw_server import HELLO, Unreachable, client_of, fetch, on_both_loops


def make_certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1, which is written to `cert.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


class TlsServer:
    """Counts its connections, and answers each request with the same; `first`: sent before any request."""

    def __init__(self, first: bytes) -> None:
        self.connections = self.open = 0
        self._first = first

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(self._first)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(HELLO)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


@asynccontextmanager
async def tls_server(context: ssl.SSLContext, first: bytes = b"") -> AsyncIterator[tuple[TlsServer, str]]:
    serving = TlsServer(first)
    listening = await asyncio.start_server(serving.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield serving, f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


@on_both_loops
async def test_a_server_whose_certificate_the_system_trusts_is_asked_and_no_other(tmp_path: Path) -> None:
    async with tls_server(make_certificate(tmp_path)) as (serving, url):
        stranger = client_of(url)
        with pytest.raises(Unreachable, match="certificate"):
            await fetch(stranger)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            client = client_of(url)
        before = serving.connections
        assert [await fetch(client) for _ in range(3)] == [(200, b"hello")] * 3
        assert serving.connections == before + 1
        await client.close()


@on_both_loops
async def test_what_comes_with_the_handshake_breaks_nothing(tmp_path: Path) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    context = make_certificate(tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # its handshake ends with the server's message
    async with tls_server(context, HELLO) as (_, url):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            client = client_of(url)
        with suppress(Unreachable):  # the loops differ in when they read it
            assert await fetch(client) == (200, b"hello")
        await client.close()
    assert failures == []
