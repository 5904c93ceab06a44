//! As little HTTP as the admin interface needs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request over the unix socket at `socket`; `None` when nobody listens there.
pub fn over_socket(socket: &Path, method: &str, target: &str, body: &str) -> Option<Reply> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    exchange(stream, method, target, body)
}

/// One request over TCP; `None` when nobody listens there.
pub fn over_tcp(server: SocketAddr, method: &str, target: &str, body: &str) -> Option<Reply> {
    let stream = TcpStream::connect_timeout(&server, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    exchange(stream, method, target, body)
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    body: &str,
) -> Option<Reply> {
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, head: head.to_owned(), body: body.to_owned() })
}
