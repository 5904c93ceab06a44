//! Network and mount namespaces of a test's own: only loopback, no route out, files bound over.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;

use super::process::{cannot_run, find};

/// Set for the process that runs one test again in a user namespace.
const AGAIN: &str = "IT_NAMESPACE";

/// Runs `body` on a thread in network and mount namespaces of its own, `lo` up.
///
/// Programs that it starts are in them too. Without root the test runs again in a user namespace.
pub fn inside(body: impl FnOnce() + Send) {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 && std::env::var_os(AGAIN).is_none() {
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
        std::panic::resume_unwind(panic);
    }
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
