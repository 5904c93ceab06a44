//! Where the lab lives: a process that is the first of a PID namespace of its own, so that the kernel
//! ends everything in it the moment that the command dies, however it dies.
//!
//! The command unshares, starts itself again inside, and waits. Inside, stdin is a pipe that only the
//! command holds open: its end, and the parent-death signal, both end the shelter.

use std::fs;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use thiserror::Error;

/// Which kind of namespace, for the errors.
const MEND: &str = "run it as root, or allow unprivileged user namespaces (sysctl \
    kernel.apparmor_restrict_unprivileged_userns=0, kernel.unprivileged_userns_clone=1, or a larger \
    user.max_user_namespaces; in a container \
    a seccomp profile that lets unshare through, or --privileged)";

/// Why there is no shelter.
#[derive(Debug, Error)]
pub enum ShelterError {
    #[error("the kernel, AppArmor or seccomp refuses a {what}: {reason}; {MEND}")]
    Refused { what: &'static str, reason: io::Error },
    #[error("the lab cannot be started inside its namespaces: {0}")]
    Start(io::Error),
}

/// Runs this executable again with `arguments` in a PID namespace (and, where that is refused, a user
/// namespace) of its own, and waits for its end. The calling process must have a single thread.
///
/// # Errors
/// `Refused` when namespaces are not to be had, `Start` when the executable does not start.
pub fn run_inside<I, S>(arguments: I) -> Result<ExitStatus, ShelterError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    leave_pid_namespace()?;
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(ShelterError::Start)?;
    wait(&mut child).map_err(ShelterError::Start)
}

/// Waits without closing the pipe, which `Child::wait` would do.
fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let lifeline = child.stdin.take();
    let status = child.wait();
    drop(lifeline);
    status
}

/// Makes the next child the first process of a new PID namespace.
fn leave_pid_namespace() -> Result<(), ShelterError> {
    if unshare(libc::CLONE_NEWPID).is_ok() {
        return Ok(());
    }
    // SAFETY: both only read the ids of this process.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let refused = |what| move |reason| ShelterError::Refused { what, reason };
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID).map_err(refused("user namespace"))?;
    let map = || {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    };
    map().map_err(refused("root of its own in a user namespace"))
}

/// Settles in: from here on the process dies with the command and stands in an empty network namespace.
///
/// # Errors
/// `Refused` when the network namespace is not to be had.
pub fn settle() -> Result<(), ShelterError> {
    // SAFETY: sets one flag of this process; the argument is a signal number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    allow_descriptors();
    thread::spawn(|| {
        // The command never writes: whatever comes is its end.
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    unshare(libc::CLONE_NEWNET)
        .map_err(|reason| ShelterError::Refused { what: "network namespace", reason })
}

/// Allows this process as many descriptors as it may have: each query that waits has a socket.
fn allow_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both only read or write the one structure; a refusal leaves the limit as it is.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Gives the calling thread namespaces of its own.
pub(super) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes flags only; it moves the calling thread, which is what is wanted.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
