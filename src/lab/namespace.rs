//! A network namespace, held by a descriptor of this process; threads enter it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread;

use super::LabError;
use super::shelter::unshare;
use crate::netlink::links::Links;

/// A network namespace, with `lo` up. It goes when this and its last process are gone.
pub(super) struct Namespace {
    /// What people call it.
    pub name: String,
    file: File,
}

impl Namespace {
    /// Makes a new one; the calling thread stays where it is.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn new(name: &str) -> Result<Self, LabError> {
        let made = in_thread(|| {
            unshare(libc::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let refused = |reason| LabError::Namespace { name: name.to_owned(), reason };
        let namespace = Self { name: name.to_owned(), file: made.map_err(refused)? };
        namespace.wire(|links| links.bring_up("lo"))?;
        Ok(namespace)
    }

    /// Runs `work` on a thread inside, and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `work`.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, LabError> + Send,
    ) -> Result<T, LabError> {
        in_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Moves the calling thread inside; for threads that stay there.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn enter(&self) -> Result<(), LabError> {
        // SAFETY: the descriptor is open, and only the calling thread moves.
        match unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(LabError::Namespace {
                name: self.name.clone(),
                reason: io::Error::last_os_error(),
            }),
        }
    }

    /// Runs `work` with a netlink socket of this namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `work`.
    pub(super) fn wire<T: Send>(
        &self,
        work: impl FnOnce(&mut Links) -> Result<T, crate::netlink::links::LinkError> + Send,
    ) -> Result<T, LabError> {
        self.run(|| Ok(work(&mut Links::open()?)?))
    }

    /// Writes a value below `/proc/sys/net`; false where this kernel has no such setting.
    ///
    /// # Errors
    /// When it is there and cannot be written.
    pub(super) fn set(&self, key: &str, value: &str) -> Result<bool, LabError> {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| match fs::write(&path, value) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(reason) => Err(LabError::Setting { key: key.to_owned(), reason }),
        })
    }

    /// The command with which somebody outside enters.
    pub(super) fn entrance(&self) -> String {
        // /proc is that of the outside, so the link names the pid that people see.
        let pid = fs::read_link("/proc/self").unwrap_or_default();
        let (pid, descriptor) = (pid.display(), self.file.as_raw_fd());
        let user = match is_in_user_namespace() {
            true => format!("--user=/proc/{pid}/ns/user --preserve-credentials "),
            false => String::new(),
        };
        format!("nsenter {user}--net=/proc/{pid}/fd/{descriptor}")
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Tells whether root here is somebody else outside.
fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// Runs `work` on a thread of its own, whose namespace is then its own affair.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
