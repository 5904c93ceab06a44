//! The measure: the least that receiving and sending a datagram costs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// Datagrams per system call, as nodens has it.
const BATCH: usize = 32;

/// The longest datagram that is echoed whole.
const LENGTH: usize = 1500;

/// Answers every datagram with itself, its QR bit set, until the process is killed.
pub fn serve(port: u16) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(4 << 20)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    let mut buffers = vec![[0u8; LENGTH]; BATCH];
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut names: [libc::sockaddr_storage; BATCH] = unsafe { std::mem::zeroed() };
    let mut parts: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: LENGTH })
        .collect();
    // SAFETY: all-zero bytes are a valid mmsghdr.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (index, message) in messages.iter_mut().enumerate() {
        message.msg_hdr.msg_iov = &raw mut parts[index];
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = (&raw mut names[index]).cast();
    }
    loop {
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            part.iov_len = LENGTH;
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        let descriptor = socket.as_raw_fd();
        let (batch, flags) = (BATCH as libc::c_uint, libc::MSG_WAITFORONE);
        // SAFETY: the headers point at live parts and names; buffers outlive the call.
        let count = unsafe {
            libc::recvmmsg(descriptor, messages.as_mut_ptr(), batch, flags, std::ptr::null_mut())
        };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        for index in 0..count {
            buffers[index][2] |= 0x80;
            parts[index].iov_len = messages[index].msg_len as usize;
        }
        // SAFETY: as above; the first `count` headers were filled by recvmmsg.
        unsafe { libc::sendmmsg(descriptor, messages.as_mut_ptr(), count as libc::c_uint, 0) };
    }
}
