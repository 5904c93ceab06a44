//! Programs: found, started so that they cannot outlive the test, measured, ended by their own id.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::place::{has_ipv6, until};

/// Where Debian keeps servers, besides PATH.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The program's file, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Tells whether all are installed; says loudly which is not. `::1` means that IPv6 is here.
///
/// # Panics
/// When one is missing and `CI` is `true`: a test that cannot run is never silently green.
pub fn all_present(programs: &[&str]) -> bool {
    let is_here = |name: &str| match name {
        "::1" => has_ipv6(),
        program => find(program).is_some(),
    };
    let missing: Vec<_> = programs.iter().filter(|program| !is_here(program)).collect();
    if !missing.is_empty() {
        cannot_run(&format!("{missing:?} not here (tests/packages.txt names the packages)"));
    }
    missing.is_empty()
}

/// Says on standard error that the calling test did not run.
///
/// # Panics
/// When `CI` is `true`.
pub fn cannot_run(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "NOT RUN: {why}");
    say_loudly(&format!("NOT RUN: {why}"));
}

/// Says on standard error what has to be heard of the calling test, though it may be green.
pub fn say_loudly(what: &str) {
    let thread = std::thread::current();
    let text = format!("{}: {what}\n", thread.name().unwrap_or("a test"));
    // Past libtest's capture, which would hide it in a green run.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/stderr")
        .and_then(|mut stderr| std::io::Write::write_all(&mut stderr, text.as_bytes()));
}

/// A command for `program`, found where Debian puts it.
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| panic!("{program} is not installed")))
}

/// A running program that ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both its outputs in the file `log`; it dies with the calling thread.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let out = File::create(log).expect("a log file");
        let err = out.try_clone().expect("a second descriptor");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        die_with_parent(&mut command);
        let child = command.spawn().expect("the program starts");
        Self { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        until(limit, || self.ended().is_some());
        self.ended()
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a plain system call; the child is ours and not yet waited for.
        let result = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(result, 0, "the child takes signal {signal}");
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid()));
        let pages = statm.ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
        pages.expect("a living process has pages") * 4096
    }

    /// User and system time so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("stat");
        let fields = stat.rsplit_once(')').expect("a name in brackets").1;
        let ticks: u64 =
            fields.split(' ').skip(12).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the kernel kill the program when the thread that starts it ends.
fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one async-signal-safe system call.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}
