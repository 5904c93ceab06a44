//! A forger who knows when and what is asked and of whom, but neither port, id nor case.

use std::io;
use std::net::SocketAddr;

use super::process::query;

/// The last byte of every forged answer's address; no upstream ever says it.
pub const FORGED: u8 = 66;

/// Packets per system call.
const BATCH: usize = 64;

/// Sends `count` forged responses from `upstream` to random ports, each for the name of the moment.
pub fn forge(count: u64, upstream: SocketAddr, name: impl Fn() -> String) -> io::Result<u64> {
    let SocketAddr::V4(from) = upstream else { return Err(io::ErrorKind::Unsupported.into()) };
    // SAFETY: a plain system call.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid address, whose used fields are set below.
    let mut target: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    target.sin_family = libc::AF_INET as libc::sa_family_t;
    target.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    let mut sent = 0;
    while sent < count {
        let template = response(from.ip().octets(), from.port(), &name());
        let mut packets = vec![template; BATCH];
        for packet in &mut packets {
            let port: u16 = rand::random_range(32_768..61_000);
            packet[22..24].copy_from_slice(&port.to_be_bytes());
            packet[28..30].copy_from_slice(&rand::random::<u16>().to_be_bytes());
        }
        let mut parts: Vec<libc::iovec> = packets
            .iter_mut()
            .map(|packet| libc::iovec {
                iov_base: packet.as_mut_ptr().cast(),
                iov_len: packet.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> =
            parts.iter_mut().map(|part| message(part, &mut target)).collect();
        // SAFETY: every pointer leads to memory that lives until the call returns.
        let result = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), BATCH as u32, 0) };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::ConnectionRefused {
                return Err(error);
            }
        }
        sent += result.max(0) as u64;
    }
    // SAFETY: our own descriptor, used no more.
    unsafe { libc::close(socket) };
    Ok(sent)
}

/// One message of a batch.
fn message(part: &mut libc::iovec, target: &mut libc::sockaddr_in) -> libc::mmsghdr {
    // SAFETY: all zeroes is a valid header, whose used fields are set below.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = std::ptr::from_mut(target).cast();
    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    message.msg_hdr.msg_iov = part;
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// An IPv4 packet with a response for `name`; destination port and id are to be filled in.
fn response(from: [u8; 4], port: u16, name: &str) -> Vec<u8> {
    let mut dns = query(0, name, None);
    dns[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    dns.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, FORGED]);
    let udp_length = (8 + dns.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]); // the kernel fills in id and checksum
    packet.extend(from);
    packet.extend([127, 0, 0, 1]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]); // no checksum
    packet.extend(dns);
    packet
}
