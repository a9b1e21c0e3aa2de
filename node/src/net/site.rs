//! Who counts as one sender when strangers are counted by address.

use std::net::{IpAddr, Ipv6Addr};

/// What one subscriber has: an IPv4 address, or an IPv6 network of 64 bits.
pub(super) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}
