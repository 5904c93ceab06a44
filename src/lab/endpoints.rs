//! What nodens knows of the cluster DNS endpoints: a file that it looks at again when it changes.

use std::net::SocketAddr;

use super::LabError;
use super::memory::MemoryFile;
use super::net::Host;

/// Bytes of the file, always: so one write changes all of it, and nobody reads half.
const SIZE: usize = 512;

/// The file.
pub(super) struct Endpoints(MemoryFile);

impl Endpoints {
    /// A file that names these servers.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn new(servers: &[Host]) -> Result<Self, LabError> {
        let endpoints = Self(MemoryFile::new(c"endpoints").map_err(LabError::Memory)?);
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
        self.0.put(&text).map_err(LabError::Memory)
    }

    /// As the daemon finds it.
    pub(super) fn upstream(&self) -> String {
        format!("file:{}", self.0.path())
    }
}
