"""How gateway and trainer sign what they send to an operator's address: Standard Webhooks 1.0 (standardwebhooks.com).

    webhook-id: msg_2f1c…
    webhook-timestamp: 1767225600
    webhook-signature: v1,<base64 of HMAC-SHA256(key, id + "." + timestamp + "." + body)>

Its libraries take the secret as `whsec_` and the base64 of the key.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import Final

WHSEC: Final = "whsec_"


def signed_headers(key: bytes, timestamp: int, body: bytes, *, message_id: str | None = None) -> dict[str, str]:
    """The three headers, in the scheme `v1` (symmetric).

    Args:
        timestamp: Of this attempt, Unix seconds.
        message_id: The same for every attempt at one message; None for a new one.
    """
    message_id = message_id or f"msg_{secrets.token_hex(16)}"
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def signing_key(secret: str) -> bytes:
    """The HMAC key for a secret: the decoded bytes of `whsec_` and base64, otherwise the secret's own bytes.

    Raises:
        ValueError: It begins with `whsec_`, and no valid base64 follows.
    """
    if not secret.startswith(WHSEC):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(WHSEC), validate=True)
    except ValueError:
        raise ValueError(f"the value after `{WHSEC}` is not valid base64") from None
