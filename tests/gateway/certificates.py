"""Certificates made for a test, each its own authority."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import leave_out


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and of its key."""

    cert: str
    key: str

    def server_side(self, clients: "Certificate | None" = None) -> ssl.SSLContext:
        """For a server that shows it; `clients`: what its clients must show."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.cert)
        return context

    def client_side(self) -> ssl.SSLContext:
        """For a client that trusts it alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.cert)
        return context


def make_certificate(folder: Path, name: str, host: str = "IP:127.0.0.1") -> Certificate:
    """A certificate for `host` that signs itself."""
    if shutil.which("openssl") is None:
        leave_out("the command openssl is not there to make certificates")
    made = Certificate(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    command = (
        *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-addext", f"subjectAltName={host}", "-keyout", made.key, "-out", made.cert),
    )
    subprocess.run(command, check=True, capture_output=True)
    return made
