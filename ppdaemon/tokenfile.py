# SPDX-License-Identifier: BSD-3-Clause
"""Files with a token, which those who send a request must know."""

import hmac
from pathlib import Path

from ppdaemon.errors import ConfigError

__all__ = ("is_token", "read_token")

MIN_TOKEN = 20
"""Letters of a token: `openssl rand -hex 16` writes 32."""


def read_token(path: Path) -> str:
    """Return the token in a file. Raises `~ppdaemon.errors.ConfigError` if it is too short, or if other
    users can read it.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise ConfigError([f"{path}: other users can read the token: chmod o= {path}"])
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from None
    if len(token) < MIN_TOKEN:
        raise ConfigError(
            [f"{path}: a token has at least {MIN_TOKEN} letters: openssl rand -hex 16 > {path}"]
        )
    return token


def is_token(text: str, token: str) -> bool:
    """Return whether the text of a request is the token; it may have been any bytes."""
    return hmac.compare_digest(text.encode(errors="surrogatepass"), token.encode())
