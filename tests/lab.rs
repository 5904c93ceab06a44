//! The lab on this machine's kernel: queries are lost without nodens and not with it, and nothing is
//! left when its command is killed.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Labs race for the same two packets in one microsecond: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `nodens lab` with `arguments`.
fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.arg("lab").args(arguments).stdin(Stdio::null());
    command
}

/// Says loudly that namespaces are refused here; a failure where everything must run.
fn is_refused(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    let refused = !output.status.success() && text.contains("refuses a");
    if refused {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to run the lab: {text}");
        eprintln!("CANNOT RUN: {text}");
    }
    refused
}

/// Runs one scenario by bridge and IPv4; its rows without and with nodens. `None` where namespaces
/// are refused.
fn rows(scenario: &str, seed: u32) -> Option<[serde_json::Value; 2]> {
    let seed = seed.to_string();
    let arguments = ["--scenario", scenario, "--topology", "bridge", "--family", "ipv4"];
    let more = ["--rounds", "2000", "--rate", "1000", "--timeout", "1s", "--json", "--seed", &seed];
    let output = lab(&arguments).args(more).output().expect("the executable starts");
    if is_refused(&output) {
        return None;
    }
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = [0, 1].map(|row| report["rows"][row].clone());
    assert_eq!((&rows[0]["with_nodens"], &rows[1]["with_nodens"]), (&false.into(), &true.into()));
    Some(rows)
}

#[test]
fn the_same_port_at_the_same_instant_loses_queries_without_nodens_and_none_with_it() {
    let _alone = alone();
    for attempt in 0..4 {
        let Some([without, with]) = rows("snat", attempt * 2000) else { return };
        assert_eq!((&without["queries"], &with["queries"]), (&4000.into(), &4000.into()));
        for counter in ["insert_failed", "drop", "clash_resolve"] {
            assert_eq!(with["conntrack"][counter], 0, "{counter}: {with}");
        }
        assert_eq!((&with["given_up"], &with["failed"]), (&0.into(), &0.into()), "{with}");
        assert_eq!(with["entries"]["of_pods"], 0, "{with}");
        assert_eq!(without["conntrack"]["insert_failed"], without["conntrack"]["drop"]);
        let dropped = without["conntrack"]["drop"].as_u64().expect("a number");
        // A loaded machine may keep two pods from one microsecond, or a response for a second.
        if dropped > 0 && without["lost"] == dropped && with["lost"] == 0 {
            return;
        }
        eprintln!("attempt {attempt}: without {without}, with {with}");
    }
    panic!("no loss without nodens, or more than conntrack dropped, in four attempts");
}

#[test]
fn a_killed_daemon_loses_what_is_in_flight_and_an_upgrade_nothing() {
    let _alone = alone();
    let Some([_, killed]) = rows("kill", 0) else { return };
    // 1,000 queries a second: the cluster DNS answers what comes 50 ms later, and every second try.
    assert!(killed["lost"].as_u64().expect("a number") <= 50, "{killed}");
    assert_eq!((&killed["given_up"], &killed["failed"]), (&0.into(), &0.into()), "{killed}");
    let ordinary = killed["entries"]["of_pods"].as_u64().expect("a number");
    assert!((1000..=1400).contains(&ordinary), "two thirds take the ordinary path: {killed}");
    for attempt in 0..3 {
        let Some([_, upgraded]) = rows("upgrade", attempt * 2000) else { return };
        assert_eq!(upgraded["entries"]["of_pods"], 0, "none took the ordinary path: {upgraded}");
        // A loaded machine may keep a response for a second, which counts as lost.
        if upgraded["lost"] == 0 {
            return;
        }
        eprintln!("attempt {attempt}: {upgraded}");
    }
    panic!("an upgrade lost queries in three attempts");
}

#[test]
fn killing_the_command_leaves_no_process_and_no_namespace() {
    let _alone = alone();
    for signal in ["KILL", "INT"] {
        let mut child = lab(&["--scenario", "snat", "--rounds", "1000000"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the executable starts");
        let Some(inside) = wait_for_daemon(&mut child) else { return };
        let namespaces: Vec<_> = inside.iter().filter_map(|pid| namespace_of(*pid)).collect();
        assert!(!namespaces.is_empty(), "processes of the lab have namespaces");
        let pid = child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill runs");
        assert!(killed.success());
        child.wait().expect("it was ours");
        let is_gone = || {
            inside.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
                && held().iter().all(|one| !namespaces.contains(one))
        };
        assert!(within(Duration::from_secs(5), is_gone), "{signal}: {inside:?} {namespaces:?}");
    }
}

/// Waits until the lab is at work; the pids of everything in it. `None` where namespaces are refused.
fn wait_for_daemon(child: &mut Child) -> Option<Vec<u32>> {
    let mut inside = Vec::new();
    let is_up = within(Duration::from_secs(20), || {
        inside = descendants(child.id());
        let sockets = inside.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
        // Pods' and servers' namespaces, and sockets.
        sockets.map(Iterator::count).max().unwrap_or_default() > 12
            || child.try_wait().expect("it is ours").is_some()
    });
    if child.try_wait().expect("it is ours").is_some() {
        let output = Output {
            status: child.wait().expect("it is ours"),
            stdout: Vec::new(),
            stderr: child.stderr.take().map(read_all).unwrap_or_default(),
        };
        assert!(is_refused(&output), "{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    assert!(is_up && !inside.is_empty(), "the lab comes up");
    Some(inside)
}

/// All that a stream says.
fn read_all(mut from: impl std::io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    bytes
}

/// Children, and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// The name of a process's network namespace.
fn namespace_of(pid: u32) -> Option<String> {
    let name = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// The network namespaces that any process is in.
fn held() -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(namespace_of).collect()
}

/// Tells whether it becomes true in time.
fn within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}
