//! Where a test's files lie and which ports it takes, and how it waits.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A directory of one test, removed with it.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// A fresh, empty directory with a short name (unix socket paths end at 108 bytes).
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nodens-it-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file; gives back its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file for the test");
        path
    }

    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::env::var_os("IT_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A port that is free for UDP and TCP on 127.0.0.1 and, where there is one, on ::1.
///
/// Drawn below the kernel's own range, so that no outgoing socket takes it before its user does.
pub fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = 10_000 + rand::random::<u16>() % 20_000;
        let free = |host: &str| {
            UdpSocket::bind((host, port)).is_ok() && TcpListener::bind((host, port)).is_ok()
        };
        if free("127.0.0.1") && (!has_ipv6() || free("::1")) {
            return port;
        }
    }
    panic!("no port is free");
}

/// Tells whether ::1 can be bound here.
pub fn has_ipv6() -> bool {
    UdpSocket::bind(("::1", 0)).is_ok()
}

/// Waits until `holds`, at most `limit`; tells whether it came to hold.
pub fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
