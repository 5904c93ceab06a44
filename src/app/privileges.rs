//! Privileges: of what the daemon was started with it keeps two capabilities, and never gains more.
//!
//! They belong to threads, and a thread inherits them from the one that starts it: this runs before
//! the first thread is started. All unsafe code of `app` stands here.

use std::io;

use thiserror::Error;

/// What is of use to the daemon: ports below 1024; links, addresses, tables, marks, large buffers.
///
/// Numbers: capabilities(7), `linux/capability.h`.
const NEEDED: [(u32, &str); 2] = [(10, "CAP_NET_BIND_SERVICE"), (12, "CAP_NET_ADMIN")];

/// `_LINUX_CAPABILITY_VERSION_3`: 64 bits in two halves.
const VERSION: u32 = 0x2008_0522;

/// Why privileges could not be given up.
#[derive(Debug, Error)]
#[error(
    "cannot {what}: {source}; a seccomp profile for nodens must let capget, capset and prctl through, as \
     RuntimeDefault does"
)]
pub struct PrivilegeError {
    what: &'static str,
    source: io::Error,
}

/// The head of `capget` and `capset`.
#[repr(C)]
struct Head {
    version: u32,
    /// 0 is the calling thread.
    pid: libc::c_int,
}

/// One half of a thread's capability sets: the lower 32 first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up everything but what is needed, and all ways to gain more; gives back the names of what is kept.
///
/// # Errors
/// When the kernel, or a seccomp profile, refuses.
pub fn keep_needed() -> Result<Vec<&'static str>, PrivilegeError> {
    prctl([libc::PR_SET_NO_NEW_PRIVS, 1, 0]).map_err(failed("set no_new_privs"))?;
    prctl([libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0])
        .map_err(failed("clear ambient capabilities"))?;
    narrow_bounding_set().map_err(failed("narrow the bounding set"))?;
    let given = capabilities().map_err(failed("read capabilities"))?;
    let (kept, names) = keep(given[0].permitted);
    let low = Half { effective: kept, permitted: kept, inheritable: 0 };
    set_capabilities([low, Half::default()]).map_err(failed("drop capabilities"))?;
    Ok(names)
}

/// What is needed of the permitted capabilities, as bits and by name.
fn keep(permitted: u32) -> (u32, Vec<&'static str>) {
    let here = NEEDED.into_iter().filter(|(number, _)| permitted & (1 << number) != 0);
    here.fold((0, Vec::new()), |(bits, mut names), (number, name)| {
        names.push(name);
        (bits | 1 << number, names)
    })
}

/// Takes from the bounding set what no program that we could start shall have.
///
/// Without CAP_SETPCAP it stays as it is; no_new_privs makes it idle.
fn narrow_bounding_set() -> io::Result<()> {
    // The kernel says EINVAL behind the last capability that it knows.
    let known = (0..64).map_while(|number| {
        prctl([libc::PR_CAPBSET_READ, number, 0]).ok().map(|is_in| (number, is_in == 1))
    });
    let is_needed =
        |number| NEEDED.iter().any(|(needed, _)| i64::from(*needed) == i64::from(number));
    for (number, _) in known.filter(|(number, is_in)| *is_in && !is_needed(*number)) {
        match prctl([libc::PR_CAPBSET_DROP, number, 0]) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            other => drop(other?),
        }
    }
    Ok(())
}

/// The calling thread's capabilities.
fn capabilities() -> io::Result<[Half; 2]> {
    let mut head = Head { version: VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: both outlive the call, and version 3 says that there are two halves.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut head, halves.as_mut_ptr()) };
    if result == 0 { Ok(halves) } else { Err(io::Error::last_os_error()) }
}

/// Sets the calling thread's capabilities.
fn set_capabilities(halves: [Half; 2]) -> io::Result<()> {
    let mut head = Head { version: VERSION, pid: 0 };
    // SAFETY: both outlive the call, and version 3 says that there are two halves.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut head, halves.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Calls `prctl`; what is not given is 0, as the kernel demands.
fn prctl([option, first, second]: [libc::c_int; 3]) -> io::Result<libc::c_int> {
    let [first, second] = [first, second].map(libc::c_long::from);
    let zero: libc::c_long = 0;
    // SAFETY: none of the options used here takes a pointer.
    match unsafe { libc::prctl(option, first, second, zero, zero) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Names what was refused.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> PrivilegeError {
    move |source| PrivilegeError { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_everything_two_capabilities_are_kept_and_of_nothing_none() {
        for (permitted, bits, names) in [
            (u32::MAX, 0x1400, &["CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN"][..]),
            (0x1000, 0x1000, &["CAP_NET_ADMIN"]),
            (0x20_0401, 0x0400, &["CAP_NET_BIND_SERVICE"]),
            (0, 0, &[]),
        ] {
            assert_eq!(keep(permitted), (bits, names.to_vec()), "{permitted:x}");
        }
    }

    #[test]
    fn a_thread_that_has_given_up_its_privileges_has_at_most_the_two() {
        // Only the calling thread loses them.
        std::thread::spawn(|| {
            keep_needed().expect("the kernel lets us");
            let [low, high] = capabilities().expect("readable");
            assert_eq!((low.permitted & !0x1400, high.permitted, low.inheritable), (0, 0, 0));
            assert_eq!(low.effective, low.permitted);
            assert_eq!(prctl([libc::PR_GET_NO_NEW_PRIVS, 0, 0]).expect("readable"), 1);
        })
        .join()
        .expect("no panic");
    }
}
