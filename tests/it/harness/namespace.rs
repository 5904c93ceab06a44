//! Network and mount namespaces of a test's own: only loopback, no route out, files bound over.

use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::process::{cannot_run, find, say_loudly};
use super::witness::Witness;

/// Set for the process that runs one test again in a user namespace.
const AGAIN: &str = "IT_NAMESPACE";

/// An echo that comes so late: the load's receive buffers have overflown by then, or its queries left late.
const STARVED: Duration = Duration::from_millis(50);

/// How often a body is begun anew, at most, where the machine was starved.
const ATTEMPTS: u32 = 3;

/// As [`inside`], for a body whose judgement takes a machine that has time for it.
///
/// Where `body` fails and a bare echo beside it was late too, the load was starved, not only the daemon: that is
/// said, and all of it is done again. While the echo is in time a failure is one at once, and so is the last.
pub fn inside_fairly(body: impl Fn() + Send + Sync) {
    if is_outside() {
        return again();
    }
    for attempt in 1..=ATTEMPTS {
        let witness = Witness::start();
        let outcome = catch_unwind(AssertUnwindSafe(|| inside(&body)));
        let late = witness.end();
        match outcome {
            Ok(()) => return,
            Err(panic) if attempt == ATTEMPTS || late < STARVED => {
                println!("attempt {attempt}; the echo was {late:?} late at most");
                resume_unwind(panic)
            }
            Err(_) => say_loudly(&format!(
                "STARVED: a bare echo was {late:?} late: attempt {attempt} of {ATTEMPTS} failed and says nothing"
            )),
        }
    }
}

/// Runs `body` on a thread in network and mount namespaces of its own, `lo` up.
///
/// Programs that it starts are in them too. Without root the test runs again in a user namespace.
pub fn inside(body: impl FnOnce() + Send) {
    if is_outside() {
        return again();
    }
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter();
                body();
            })
            .join()
    });
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// Tells whether this process may make no namespace, and another one must.
fn is_outside() -> bool {
    // SAFETY: a plain system call.
    let is_root = unsafe { libc::geteuid() } == 0;
    !is_root && std::env::var_os(AGAIN).is_none()
}

/// Runs the calling test alone with all capabilities of a user namespace.
///
/// Under its own user: as "root" some programs (tcpdump) would try to become somebody else.
fn again() {
    let thread = std::thread::current();
    let Some(test) = thread.name().filter(|name| *name != "main") else {
        return cannot_run("needs root, or test threads with names");
    };
    if find("unshare").is_none() {
        return cannot_run("needs root, or unshare");
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-current-user", "--keep-caps", "--"])
        .arg(std::env::current_exe().expect("this executable"))
        .args(["--exact", test, "--nocapture"])
        .env(AGAIN, "1")
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("unshare failed") {
        return cannot_run("needs root, or user namespaces");
    }
    let count = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && count, "in a user namespace:\n{text}");
}

/// Moves the calling thread into new namespaces.
fn enter() {
    // SAFETY: system calls on the calling thread, with strings that outlive them.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS), 0, "{}", error());
        let root = c"/".as_ptr();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(
            libc::mount(c"none".as_ptr(), root, std::ptr::null(), private, std::ptr::null()),
            0,
            "{}",
            error()
        );
    }
    ip(&["link", "set", "lo", "up"]);
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &[&str]) {
    let program = find("ip").expect("ip is installed (iproute2)");
    let status = Command::new(program).args(arguments).status().expect("ip runs");
    assert!(status.success(), "ip {arguments:?}");
}

/// Binds the file `source` over `target` in the calling thread's mount namespace.
pub fn bind_over(source: &Path, target: &str) {
    let path = |path: &Path| {
        CString::new(path.to_string_lossy().into_owned()).expect("a path without NUL")
    };
    let (source, target) = (path(source), path(Path::new(target)));
    // SAFETY: a system call with strings that outlive it.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            std::ptr::null(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "{source:?} over {target:?}: {}", error());
}

fn error() -> std::io::Error {
    std::io::Error::last_os_error()
}
