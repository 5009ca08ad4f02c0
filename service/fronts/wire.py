"""What a gateway and its fronts must agree on.

A front has one *feed*: a GET whose answer never ends and has a JSON message a line. It begins with all that the front
must know, and goes on with what changes; each part ends with a `ready`, until which the front changes nothing:

    {"t": "topology", …}                      engines, bases and the gateway's policy (``service.fronts.topology``)
    {"t": "auth", "secret", "admin", "salts"} hex: the keys' HMAC secret, the admin key's HMAC, the caches' salts' key
    {"t": "keys", "put": [[hmac, entry], …], "drop": [hmac, …]}
    {"t": "adapters", "put": [[project, part], …], "drop": [[project, name], …]}
                                              a part has the versions that are new or others ("versions"), and the
                                              numbers of those that are gone ("drop"); all others stay
    {"t": "budgets", "spent": {project: error}}
    {"t": "agents", "addresses": {engine: address}}   of agents that announce themselves; null: it is not there any more
    {"t": "fronts", "count"}                  how many there are, to share limits by while the gateway is away
    {"t": "ready", "epoch", "version"}        of all told so far; versions are counted from each start of a gateway
    {"t": "alive"}                            at least every SIGN_OF_LIFE_S

It asks for its limited keys' requests by POSTs of `{"number", "operations"}`, answered with `{"session", "answers"}`:
for each operation null, `{"headers": [[…]]}` or `{"error": …}`. A batch whose answer is lost comes again under its
number, without what somebody waited for, and is done once; there is one at least every SIGN_OF_LIFE_S. Another session
than before says that the gateway may know nothing of the front's open requests, and it is told of them. Within the
operations each number is one request of the front:

    ["take", number, key_id, project, tokens]  a request arrives, and is charged its estimate
    ["more", number, tokens]                   it is charged so many in all
    ["settle", number, tokens or null, key_id, project]  it has ended, and used so many; of one that the gateway has
                                               taken in, with its key
    ["hold", number, key_id, project, tokens]  one that another session had taken in, and which goes on
    ["count", key_id, project]                 one that ended before it was charged
    ["spent", key_id, project, tokens]         one that the front admitted by itself while the gateway was away

And it reports what was used in numbered batches; one that was applied is not applied again. One that ends POSTs `{}`
to LEAVE_PATH at last: it is not lost, and what it had taken of limits is not in use any more.

The gateway's answers to writes that a front passes on name the version that has them (VERSION_HEADER): the front gives
such an answer to its client once it was told as much, and the client's next request meets what it has just written.

All of it is signed (``service.http.signing``) for the front's id, which is new with each of its starts.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

PROTOCOL: Final = 4
"""Raised when any of this changes."""
PREFIX: Final = "/fronts/v1/"
FEED_PATH: Final = PREFIX + "feed"
LIMITS_PATH: Final = PREFIX + "limits"
REPORT_PATH: Final = PREFIX + "report"
LEAVE_PATH: Final = PREFIX + "leave"
FRONT_HEADER: Final = "x-hatrack-front"
"""``<id> <protocol> <name>``: the name is for people."""
VERSION_HEADER: Final = "x-hatrack-front-version"
"""``<epoch> <version>``, as in `ready`."""
VIA: Final = "hatrack-front"
"""By this name in the header `Via` it is known what a front has passed on (RFC 9110, section 7.6.3)."""
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
PURPOSE: Final = "front"
"""What the signing key is derived for."""
SIGN_OF_LIFE_S: Final = 1.0
MAX_NAME: Final = 80

Message: TypeAlias = dict[str, Any]
Operation: TypeAlias = list[Any]
