//! The dead-man switch: who hangs falls open, who is only slow does not, and what a beat costs.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::load::Load;
use crate::harness::node::{ASKED, Node, nft, say, server};
use crate::harness::process::cannot_run;
use crate::harness::{Daemon, namespace, needs, until};
use crate::takeover::{is_claiming, needs_node, start, upstream};

/// Where the kernel tells of the thread of this name.
fn task(daemon: &Daemon, name: &str) -> PathBuf {
    let tasks = format!("/proc/{}/task", daemon.process.pid());
    let is_it = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let mut tasks = fs::read_dir(tasks).expect("it lives").map(|task| task.expect("one").path());
    tasks.find(is_it).unwrap_or_else(|| panic!("no thread {name}"))
}

/// One thread of a process, held by ptrace until it is dropped; the others go on.
pub struct Held(libc::pid_t);

impl Held {
    /// Holds the thread of this name.
    pub fn take(daemon: &Daemon, name: &str) -> Self {
        let path = task(daemon, name);
        let thread = path.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok());
        let thread: libc::pid_t = thread.expect("a number");
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: plain system calls about a thread of our own child.
        unsafe {
            let error = std::io::Error::last_os_error;
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, thread, null, null), 0, "{}", error());
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, null, null), 0, "{}", error());
            let mut status = 0;
            assert_eq!(libc::waitpid(thread, &raw mut status, libc::__WALL), thread, "{}", error());
        }
        Self(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: a plain system call about a thread that we hold.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, null, null) };
    }
}

#[test]
fn one_thread_that_hangs_makes_all_fall_open_and_is_named() {
    needs_node!();
    namespace::inside_fairly(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        for (count, name) in (1..).zip(["serve-0", "resolver-0", "heartbeat"]) {
            assert!(node.takes_ordinary_path(
                false,
                &format!("{name}-before"),
                Duration::from_secs(2)
            ));
            let held = Held::take(&daemon, name);
            let since = Instant::now();
            let label = format!("{name}-held");
            assert!(
                node.takes_ordinary_path(true, &label, Duration::from_secs(3)),
                "{}",
                daemon.log()
            );
            let open = since.elapsed();
            println!("{name} held: open after {open:?}");
            // The switch goes off within 1 s; a query in the black hole waits 100 ms, and threads wake late.
            assert!(open <= Duration::from_millis(1200), "{name}: open after {open:?}");
            // Until the heartbeat has noticed it, too.
            std::thread::sleep(Duration::from_millis(700));
            drop(held);
            let label = format!("{name}-again");
            assert!(
                node.takes_ordinary_path(false, &label, Duration::from_secs(6)),
                "{}",
                daemon.log()
            );
            assert_eq!(daemon.metric("nodens_intercept_lapses_total", ""), f64::from(count));
            let named =
                name == "heartbeat" || daemon.log().contains(&format!("waiting=[\"{name}\""));
            assert!(named, "{}", daemon.log());
        }
    });
}

/// A group of processes that share a tenth of a core; removed with the value.
struct Tenth(PathBuf);

impl Tenth {
    /// Makes the group; `None` where this system lets us make none.
    fn new() -> Option<Self> {
        let name = format!("nodens-it-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let unified = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let (folder, quota) = match unified.split_whitespace().any(|word| word == "cpu") {
            true => (root.join(name), [("cpu.max", "10000 100000")].as_slice()),
            false => (
                root.join("cpu").join(name),
                [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "10000")].as_slice(),
            ),
        };
        fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        let write = |(file, value): &(&str, &str)| fs::write(group.0.join(file), value).is_ok();
        quota.iter().all(write).then_some(group)
    }

    /// Puts the daemon into the group.
    fn enter(&self, daemon: &Daemon) {
        let pid = daemon.process.pid().to_string();
        fs::write(self.0.join("cgroup.procs"), pid).expect("it enters the group");
    }
}

impl Drop for Tenth {
    fn drop(&mut self) {
        until(Duration::from_secs(5), || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_tenth_of_a_core_with_2000_queries_a_second_does_not_flap() {
    needs_node!();
    needs!("dnsperf");
    let Some(group) = Tenth::new() else {
        // SAFETY: a plain system call.
        match unsafe { libc::geteuid() } {
            0 => cannot_run("needs a cgroup with the cpu controller that root may divide"),
            _ => eprintln!("NOT RUN: cgroups are made as root only; the run as root covers it"),
        }
        return;
    };
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        group.enter(&daemon);
        let names = (0..100).map(|n| format!("slow-{n}.example.org A")).collect();
        let load = Load::full_speed(10, names).rate(2000);
        let report = node.in_pod(|| load.run(server(ASKED[0])));
        let lapses = daemon.metric("nodens_intercept_lapses_total", "");
        println!(
            "a tenth of a core, {} queries in 10 s: {} lost, {lapses} lapses, {} by the ordinary path",
            report.sent,
            report.lost,
            node.ordinary()
        );
        assert!(lapses == 0.0 && is_claiming(&daemon), "{}", daemon.log());
        drop(daemon);
    });
}

/// A socket that sends what the heartbeat of the one table sends, and the port that it sends to.
fn drummer() -> (UdpSocket, u16) {
    let rules = say("nft", &["list", "ruleset"]);
    let rule = rules.lines().find(|line| line.contains("update @alive")).expect("the beat's rule");
    let port = rule.split("udp dport ").nth(1).and_then(|rest| rest.split(' ').next());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mark = 0x306f_u32;
    // SAFETY: a plain system call with a value that outlives it.
    let result = unsafe {
        let mark = (&raw const mark).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark, 4)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    (socket, port.and_then(|port| port.parse().ok()).expect("a port"))
}

/// What the daemon's own heartbeat has cost so far.
#[derive(Clone, Copy)]
struct Cost {
    beats: f64,
    /// Of its thread: on a core, and waiting for one; each time that it wakes.
    on_core: Duration,
    waiting: Duration,
    turns: u32,
}

impl Cost {
    /// Reads it; `None` where the kernel keeps no such account.
    fn read(daemon: &Daemon) -> Option<Self> {
        let text = fs::read_to_string(task(daemon, "heartbeat").join("schedstat")).ok()?;
        let mut numbers = text.split_whitespace().map_while(|word| word.parse::<u64>().ok());
        let (on_core, waiting) = (numbers.next()?, numbers.next()?);
        Some(Self {
            beats: daemon.metric("nodens_intercept_beats_total", ""),
            on_core: Duration::from_nanos(on_core),
            waiting: Duration::from_nanos(waiting),
            turns: u32::try_from(numbers.next()?).expect("few"),
        })
    }

    /// Says what came on top of `before`; the time on a core for each turn.
    fn since(self, before: Self, when: &str) -> Duration {
        let turns = (self.turns - before.turns).max(1);
        let on_core = (self.on_core - before.on_core) / turns;
        println!(
            "the heartbeat itself, {when}: {} beats; a turn takes {on_core:?} of CPU, and waits {:?} for a core",
            self.beats - before.beats,
            (self.waiting - before.waiting) / turns
        );
        on_core
    }
}

/// A table of many rules: how many, and its text.
fn many_rules() -> (u32, String) {
    // Without root's socket buffers no larger batch is taken.
    // SAFETY: a plain system call.
    let count = if unsafe { libc::geteuid() } == 0 { 20_000 } else { 500 };
    let rule = |n: u32| format!("  ip saddr 198.18.{}.{} counter\n", n >> 8 & 0xff, n & 0xff);
    let rules: String = (0..count).map(rule).collect();
    (count, format!("table inet many {{\n chain many {{\n{rules} }}\n}}\n"))
}

#[test]
fn a_beat_waits_for_nobody_while_others_load_20000_rules() {
    needs_node!();
    namespace::inside(|| {
        let (_node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        let begun = Cost::read(&daemon);
        std::thread::sleep(Duration::from_secs(3));
        let idle = Cost::read(&daemon);
        match begun.zip(idle) {
            // At 4 turns a second less than a hundredth of a core, whatever the build.
            Some((begun, idle)) => {
                assert!(idle.since(begun, "idle") < Duration::from_millis(2));
            }
            None => cannot_run("the kernel keeps no account of threads (CONFIG_SCHED_INFO)"),
        }
        let (socket, port) = drummer();
        let beat = || {
            let begun = Instant::now();
            let sent = socket.send_to(&[0], ("127.0.0.1", port));
            let kind = sent.expect_err("the rule drops it").kind();
            assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
            begun.elapsed()
        };
        let mut quiet: Vec<_> = (0..10_000).map(|_| beat()).collect();
        quiet.sort();
        let (count, rules) = many_rules();
        let before = Cost::read(&daemon);
        let mut busy = std::thread::scope(|scope| {
            let loads = scope.spawn(|| {
                (0..3).for_each(|_| {
                    nft(&rules);
                    nft("delete table inet many");
                })
            });
            let mut waits = Vec::new();
            while !loads.is_finished() {
                waits.push(beat());
                std::thread::sleep(Duration::from_millis(1));
            }
            loads.join().expect("loaded");
            waits
        });
        busy.sort();
        if let Some((before, after)) = before.zip(Cost::read(&daemon)) {
            after.since(before, "while rules were loaded");
            assert!(after.beats > before.beats, "it beats meanwhile:\n{}", daemon.log());
        }
        println!(
            "a beat: median {:?} when quiet; median {:?}, longest {:?} of {} while {count} rules were \
             loaded and removed three times",
            quiet[quiet.len() / 2],
            busy[busy.len() / 2],
            busy[busy.len() - 1],
            busy.len()
        );
        assert!(busy.len() > 5, "{}", busy.len());
        assert_eq!(daemon.metric("nodens_intercept_lapses_total", ""), 0.0, "{}", daemon.log());
    });
}
