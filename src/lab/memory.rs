//! A file in memory that the daemon inherits: nothing of it is in the file system, so nothing of it can
//! stay there.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// The file.
pub(super) struct MemoryFile(File);

impl MemoryFile {
    /// An empty one.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn new(name: &CStr) -> io::Result<Self> {
        // Without CLOEXEC: the daemon shall have it.
        // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
        unsafe {
            match libc::memfd_create(name.as_ptr(), 0) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(Self(File::from_raw_fd(descriptor))),
            }
        }
    }

    /// Writes a text over its beginning, in one step.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn put(&self, text: &str) -> io::Result<()> {
        self.0.write_all_at(text.as_bytes(), 0)
    }

    /// As the daemon finds it.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
