"""Public IP addresses: the rule of ``OWNPOD_WEBHOOK_ALLOW=public``. Pure.

The lists are from IANA's special-purpose address registries. They are written out because ``ipaddress.is_global``
differs between versions of Python.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_REFUSED_V4 = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; metadata of Alibaba Cloud
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # metadata of Azure
            "169.254.0.0/16",  # link-local; metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; metadata of Oracle Cloud
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)

_PUBLIC_V6 = IPv6Network("2000::/3")
"""Global unicast. All other addresses, like fd00:ec2::254 (metadata of AWS), are refused."""

_REFUSED_V6 = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # protocol assignments, Teredo
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)

_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")


def is_public(address: str) -> bool:
    """Whether an IP address, as ``getaddrinfo`` writes it, is public. A text that is not an address is not.

    For IPv6 forms that contain an IPv4 address (mapped, NAT64, 6to4) the IPv4 address decides, because packets
    go there.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return _is_public_v4(parsed)
    if (inner := _embedded(parsed)) is not None:
        return _is_public_v4(inner)
    return parsed in _PUBLIC_V6 and not any(parsed in network for network in _REFUSED_V6)


def _is_public_v4(address: IPv4Address) -> bool:
    return not any(address in network for network in _REFUSED_V4)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside a mapped, NAT64 or 6to4 address; None for others."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None
