# SPDX-License-Identifier: BSD-3-Clause
"""Certificates for the tests: a private authority, and what it has signed for a server."""

import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Signs certificates of servers; writes all files into `folder`. One that is not `strict` is made as
    many sites have theirs, against RFC 5280.
    """

    folder: Path
    name: str = "authority"
    strict: bool = True

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    @property
    def _subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    @cached_property
    def file(self) -> Path:
        """Its own certificate, which those who trust it need."""
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        path = self.folder / f"{self.name}.pem"
        built = self._built(self._subject, self._key, DAY)
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=self.strict)
        made = built.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return path

    def server(self, host: str, *, expired: bool = False) -> Path:
        """Return a file with a certificate for the name of a host, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        built = self._built(subject, key, -DAY / 2 if expired else DAY).add_extension(names, critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = built.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        path = self.folder / f"{self.name}-{host}{'-expired' * expired}.pem"
        path.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    def _built(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        built = x509.CertificateBuilder().subject_name(subject).issuer_name(self._subject)
        built = built.public_key(key.public_key()).serial_number(x509.random_serial_number())
        built = built.not_valid_before(now - DAY).not_valid_after(now + lasts)
        return built.add_extension(identifier, critical=False)
