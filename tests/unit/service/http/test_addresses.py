"""Which addresses count as the internet's."""

from __future__ import annotations

import pytest

from service.http.addresses import AddressNotAllowed, AllowedResolver, is_address, is_public


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("0.0.0.0", False),  # noqa: S104
        ("255.255.255.255", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.5", False),
        ("64:ff9b::a00:5", False),
        ("2002:a00:5::1", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_only_allowed_addresses_of_a_name_are_left() -> None:
    resolver = AllowedResolver(lambda host, address: (host, address) == ("localhost", "127.0.0.1"), "of this test")
    assert [result["host"] for result in await resolver.resolve("localhost", 80)] == ["127.0.0.1"]
    with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.1 resolves only to addresses of this test"):
        await resolver.resolve("127.0.0.1", 80)
    await resolver.close()


def test_what_is_an_address() -> None:
    assert is_address("10.0.0.1")
    assert is_address("fe80::1%eth0")
    assert not is_address("example.com")
    assert not is_address("2130706433")
