//! One request over the admin socket: for `nodens probe` and `nodens cache flush`, in an image without
//! any other HTTP program.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use thiserror::Error;

/// How long one request may take, from connect to the last byte.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// The longest response that is read, in bytes.
const RESPONSE_BYTES: u64 = 16 * 1024 * 1024;

/// Why there is no response.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error(
        "nobody listens at {}: is nodens running? (the path is the key `admin.socket`)",
        socket.display()
    )]
    Nobody { socket: PathBuf },
    #[error("no permission for {}: run as the user of the daemon, or as root", socket.display())]
    Forbidden { socket: PathBuf },
    #[error("no response from {} within {TIMEOUT:?}", socket.display())]
    Timeout { socket: PathBuf },
    #[error("talking to {}: {reason}", socket.display())]
    Broken { socket: PathBuf, reason: io::Error },
    #[error("what listens at {} does not speak HTTP", socket.display())]
    NoHttp { socket: PathBuf },
    #[error("`{path}` is no request path")]
    BadPath { path: String },
}

/// Sends one request without a body; gives back the status code and the body.
///
/// # Errors
/// Each [`ClientError`] as its variant says; a status other than 200 is not one of them.
pub fn request(socket: &Path, method: &str, path: &str) -> Result<(u16, String), ClientError> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ClientError::BadPath { path: path.to_owned() });
    }
    let head = format!("{method} {path} HTTP/1.1\r\nHost: nodens\r\nConnection: close\r\n\r\n");
    let (done, result) = mpsc::sync_channel(1);
    let to = socket.to_owned();
    // A thread, because connect to a full backlog and a response byte by byte know no total timeout.
    std::thread::spawn(move || done.send(exchange(&to, &head)));
    let timeout = || ClientError::Timeout { socket: socket.to_owned() };
    let response = result.recv_timeout(TIMEOUT).map_err(|_| timeout())?;
    let response = response.map_err(|reason| from_io(socket, reason))?;
    parse(&response).ok_or_else(|| ClientError::NoHttp { socket: socket.to_owned() })
}

/// Text in the form that a query of a path takes: all but letters, digits, `-`, `.`, `_` as `%XX`.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                out.push(char::from(byte));
            }
            // Writing to a String does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

/// Connects, writes the request and reads until the other side closes.
fn exchange(socket: &Path, head: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(head.as_bytes())?;
    let mut response = Vec::new();
    stream.take(RESPONSE_BYTES).read_to_end(&mut response)?;
    Ok(response)
}

/// The error that an I/O error means here.
fn from_io(socket: &Path, reason: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match reason.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::Nobody { socket }
        }
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket },
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout { socket },
        _ => ClientError::Broken { socket, reason },
    }
}

/// Status and body of a response that is whole; `None` for anything else.
fn parse(response: &[u8]) -> Option<(u16, String)> {
    let end = response.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (response.get(..end)?, response.get(end + 4..)?);
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut status = lines.next()?.split(' ');
    status.next().filter(|version| version.starts_with("HTTP/1."))?;
    let code = status.next()?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let mut lengths = headers.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = lengths.next()?.1.trim().parse().ok()?;
    (body.len() == length).then(|| (code, String::from_utf8_lossy(body).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A path for a socket that nothing uses.
    fn socket(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nodens-{name}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_response_is_its_status_and_its_whole_body() {
        for (response, parsed) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n", Some((200, "ok\n"))),
            ("HTTP/1.1 503 x y\r\na: b\r\ncontent-length:0\r\n\r\n", Some((503, ""))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok\n", None),
            ("HTTP/1.1 200 OK\r\n\r\nok\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n", None),
            ("HTTP/2 200 OK\r\nContent-Length: 3\r\n\r\nok\n", None),
            ("SSH-2.0-OpenSSH\r\n\r\n", None),
            ("", None),
        ] {
            let parsed = parsed.map(|(code, body)| (code, body.to_owned()));
            assert_eq!(parse(response.as_bytes()), parsed, "{response:?}");
        }
    }

    #[test]
    fn nobody_there_is_told_with_the_mend() {
        let path = socket("nobody");
        let error = request(&path, "GET", "/livez").expect_err("no such file");
        assert!(error.to_string().contains("is nodens running?"), "{error}");
        drop(UnixListener::bind(&path).expect("binds"));
        let error = request(&path, "GET", "/livez").expect_err("a dead file");
        assert!(matches!(error, ClientError::Nobody { .. }), "{error}");
        std::fs::remove_file(&path).expect("there");
    }

    #[test]
    fn a_silent_listener_costs_the_timeout_and_no_more() {
        let path = socket("silent");
        let _listener = UnixListener::bind(&path).expect("binds");
        let start = crate::clock::now();
        let error = request(&path, "GET", "/livez").expect_err("silence");
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
        assert!(start.elapsed() < 2 * TIMEOUT);
        std::fs::remove_file(&path).expect("there");
    }

    #[test]
    fn a_path_cannot_carry_a_second_request() {
        for path in ["livez", "/a b", "/a\r\nX: y", "/ü"] {
            let error = request(Path::new("/nowhere"), "GET", path).expect_err(path);
            assert!(matches!(error, ClientError::BadPath { .. }), "{error}");
        }
        assert_eq!(encode("a.b-c_d e&ü\\"), "a.b-c_d%20e%26%C3%BC%5C");
    }
}
