//! What nodens knows of the cluster DNS endpoints: a file in memory that it inherits, and looks at again
//! when it changes. Nothing of it is in the file system, so nothing of it can stay there.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use super::LabError;
use super::net::Host;

/// Bytes of the file, always: so one write changes all of it, and nobody reads half.
const SIZE: usize = 512;

/// The file.
pub(super) struct Endpoints(File);

impl Endpoints {
    /// A file that names these servers.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn new(servers: &[Host]) -> Result<Self, LabError> {
        // Without CLOEXEC: the daemon shall have it.
        // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
        let file = unsafe {
            match libc::memfd_create(c"endpoints".as_ptr(), 0) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(File::from_raw_fd(descriptor)),
            }
        };
        let endpoints = Self(file.map_err(LabError::Endpoints)?);
        endpoints.put(servers)?;
        Ok(endpoints)
    }

    /// Names others from now on.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn put(&self, servers: &[Host]) -> Result<(), LabError> {
        let line = |host: &Host| format!("{}\n", SocketAddr::new(host.addresses.v4.into(), 53));
        let mut text: String = servers.iter().map(line).collect();
        text.extend(std::iter::repeat_n('\n', SIZE.saturating_sub(text.len())));
        self.0.write_all_at(text.as_bytes(), 0).map_err(LabError::Endpoints)
    }

    /// As the daemon finds it.
    pub(super) fn upstream(&self) -> String {
        format!("file:/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
