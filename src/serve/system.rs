//! What the host says and grants: its links' networks, its limit of descriptors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Network;

/// The networks of this host's own addresses.
///
/// # Errors
/// As `getifaddrs` says.
pub fn interface_networks() -> io::Result<Vec<Network>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes one pointer, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut networks = Vec::new();
    let mut next = first;
    // SAFETY: the list is valid until freeifaddrs; each entry is read through a checked pointer.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: both pointers come from the kernel's list and are null or valid sockaddrs.
        let (address, mask) = unsafe { (ip_of(entry.ifa_addr), ip_of(entry.ifa_netmask)) };
        if let (Some(address), Some(mask)) = (address, mask) {
            networks.push(Network { address, prefix: prefix_of(mask) });
        }
    }
    // SAFETY: first came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(first) };
    Ok(networks)
}

/// The leading ones of a netmask.
fn prefix_of(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(v4) => v4.to_bits().leading_ones(),
        IpAddr::V6(v6) => v6.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(128)
}

/// The IP address in a socket address.
///
/// # Safety
/// `address` is null or points at a valid sockaddr of its family's size.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = &*address.cast::<libc::sockaddr_in>();
                Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*address.cast::<libc::sockaddr_in6>();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// The limit of open descriptors in force.
///
/// # Errors
/// As `getrlimit` says.
pub fn descriptor_limit() -> io::Result<u64> {
    Ok(limits()?.rlim_cur)
}

/// Raises the limit of open descriptors to what the system permits; gives it back.
///
/// # Errors
/// As `setrlimit` says.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = limits()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: limit outlives the call and is only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// The limits of open descriptors: the one in force, and the most that it can be raised to.
fn limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit outlives the call and is written by it.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}
