//! The lab on this machine's kernel: queries are lost without nodens and not with it, and nothing is
//! left when its command is killed. Kills, stops and upgrades come three times; with `IT_LONG` 50, 20 and
//! 50 times, at 20,000 queries a second.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

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

/// The rows of a run. `None` where namespaces are refused.
fn rows_of(mut command: Command) -> Option<Vec<Value>> {
    let output = command.output().expect("the executable starts");
    if is_refused(&output) {
        return None;
    }
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    Some(report["rows"].as_array().expect("rows").clone())
}

/// A number of a row.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Who runs the lab: this user, and, where this is root, a user who may nothing.
fn users() -> Vec<Option<u32>> {
    let owner = fs::metadata("/proc/self").expect("/proc").uid();
    if owner == 0 { vec![None, Some(65_534)] } else { vec![None] }
}

/// `nodens lab` as `user`, who must be able to reach the executable.
fn lab_as(user: Option<u32>, arguments: &[&str]) -> Command {
    let Some(user) = user else { return lab(arguments) };
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let copy = COPY.get_or_init(|| {
        let folder = std::env::temp_dir();
        let prefix = "nodens-lab-test-";
        // Of runs that are over: nobody else clears them away.
        for entry in fs::read_dir(&folder).expect("readable").filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_old = |pid: &str| !fs::exists(format!("/proc/{pid}")).unwrap_or(true);
            if name.strip_prefix(prefix).is_some_and(is_old) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let copy = folder.join(format!("{prefix}{}", std::process::id()));
        // Not by ourselves: what another test starts meanwhile would have it open for writing.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_nodens")).arg(&copy).status();
        assert!(copied.expect("cp runs").success(), "a copy that everybody can start");
        copy
    });
    let mut command = Command::new(copy);
    command.arg("lab").args(arguments).stdin(Stdio::null()).current_dir("/");
    command.uid(user).gid(user);
    command
}

/// Rows of `snat` without nodens and with it lost what conntrack dropped, and nothing; `false` where a
/// loaded machine kept the two pods from one microsecond.
fn race_is_lost_and_won(rows: &[Value]) -> bool {
    let [without, with] = rows else { panic!("two rows: {rows:?}") };
    assert_eq!((&without["queries"], &with["queries"]), (&4000.into(), &4000.into()));
    assert_eq!((&with["given_up"], &with["failed"]), (&0.into(), &0.into()), "{with}");
    let dropped = number(&without["conntrack"]["drop"]);
    assert_eq!(without["conntrack"]["insert_failed"], dropped, "{without}");
    let overrun = |row: &Value| number(&row["overruns"]["lab"]) + number(&row["overruns"]["node"]);
    // Every loss has a cause that the kernel counted.
    assert!(number(&without["lost"]) <= dropped + overrun(without), "{without}");
    assert!(number(&without["lost"]) >= dropped, "{without}");
    let counters = ["insert_failed", "drop", "clash_resolve"].map(|name| &with["conntrack"][name]);
    // A starved nodens falls open for a while: what happens then is not its own.
    let is_clean = with["lapses"] == 0;
    if is_clean {
        assert!(counters.iter().all(|count| **count == 0), "{with}");
        assert_eq!(with["entries"]["of_pods"], 0, "{with}");
        assert!(number(&with["lost"]) <= overrun(with), "{with}");
    }
    eprintln!("without {without}\nwith {with}");
    dropped > 0 && is_clean
}

#[test]
fn the_same_port_at_the_same_instant_loses_queries_without_nodens_and_none_with_it() {
    let _alone = alone();
    for user in users() {
        let won = (0..4).any(|attempt| {
            let seed = (attempt * 2000).to_string();
            let arguments =
                ["--scenario", "snat", "--family", "ipv4", "--rounds", "2000", "--json"];
            let command = lab_as(user, &[&arguments[..], &["--seed", &seed]].concat());
            rows_of(command).is_none_or(|rows| race_is_lost_and_won(&rows))
        });
        assert!(won, "no race in four attempts, or nodens starved in each; user {user:?}");
    }
}

#[test]
fn another_servers_answers_go_through_the_same_races() {
    let _alone = alone();
    if Command::new("knotd").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have knotd");
        return eprintln!("CANNOT RUN: knotd is not installed");
    }
    let dir = std::env::temp_dir().join(format!("nodens-lab-knot-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let hosts: String =
        (0..200).map(|host| format!("web-{host}.default.svc A 10.96.1.{host}\n")).collect();
    let zone = format!(
        "$ORIGIN cluster.local.\n$TTL 5\n@ SOA ns hostmaster 1 7200 1800 86400 5\n@ NS ns\nns A 192.0.2.1\n{hosts}"
    );
    fs::write(dir.join("cluster.local.zone"), zone).expect("written");
    let script = dir.join("serve");
    let place = dir.display();
    // Each server has a directory of its own for what knot keeps.
    let text = format!(
        "#!/bin/sh\nset -eu\nown=$(mktemp -d {place}/XXXXXX)\ncat >$own/knot.conf <<END\n\
         server:\n    rundir: $own\n    listen: [ $(echo $LAB_ADDRESSES | sed 's/,/@53, /')@53 ]\n\
         database:\n    storage: $own\nzone:\n  - domain: cluster.local\n    file: {place}/cluster.local.zone\n\
         END\nexec knotd -c $own/knot.conf >/dev/null 2>&1\n"
    );
    fs::write(&script, text).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("permitted");
    let won = (0..4).any(|attempt| {
        let seed = (attempt * 2000).to_string();
        let mut command =
            lab(&["--scenario", "snat", "--family", "ipv4", "--rounds", "2000", "--json"]);
        command.args(["--seed", &seed, "--cluster-dns"]).arg(&script);
        rows_of(command).is_none_or(|rows| race_is_lost_and_won(&rows))
    });
    let _ = fs::remove_dir_all(&dir);
    assert!(won, "no race in four attempts, or nodens starved in each");
}

/// Tells whether there is time.
fn is_long() -> bool {
    std::env::var_os("IT_LONG").is_some()
}

#[test]
fn in_every_topology_and_family_nodens_loses_nothing_and_conntrack_sees_nothing() {
    let _alone = alone();
    let rounds = if is_long() { "50000" } else { "500" };
    let arguments = ["--topology", "all", "--scenario", "snat", "--scenario", "pair", "--json"];
    let mut command = lab(&arguments);
    command.args(["--nodens", "with", "--rate", "2000", "--rounds", rounds]);
    let Some(rows) = rows_of(command) else { return };
    assert_eq!(rows.len(), 16, "four topologies, two scenarios, two families");
    let mut clean = 0;
    for row in rows {
        assert_eq!((&row["given_up"], &row["failed"]), (&0.into(), &0.into()), "{row}");
        let counters =
            ["insert_failed", "drop", "clash_resolve"].map(|name| &row["conntrack"][name]);
        // Starved, nodens falls open: then there are losses again, and conntrack says which.
        assert!(number(&row["lost"]) <= number(counters[1]) + overruns(&row), "{row}");
        if row["lapses"] == 0 {
            assert!(counters.iter().all(|count| **count == 0), "{row}");
            assert_eq!(row["entries"]["of_pods"], 0, "{row}");
            clean += 1;
        }
    }
    assert!(clean >= 8, "nodens starved in {} of 16 runs", 16 - clean);
}

/// How often something is done, and how fast queries come meanwhile.
fn repeated(long: &'static str, family: &'static str) -> Vec<&'static str> {
    let turns = match is_long() {
        true => ["--repeat", long, "--rate", "20000", "--family", "ipv4", "--family", "ipv6"],
        false => ["--repeat", "3", "--rate", "2000", "--family", family, "--topology", "bridge"],
    };
    [&turns[..], &["--nodens", "with"]].concat()
}

/// Runs a scenario with nodens several times. `None` where namespaces are refused.
fn repeat(scenario: &str, long: &'static str, family: &'static str) -> Option<Vec<Value>> {
    let common = ["--scenario", scenario, "--json"];
    let rows = rows_of(lab(&[&common[..], &repeated(long, family)].concat()))?;
    assert!(rows.iter().all(|row| row["nodens"] == "with"));
    Some(rows)
}

/// Datagrams that a receive buffer dropped.
fn overruns(row: &Value) -> u64 {
    number(&row["overruns"]["lab"]) + number(&row["overruns"]["node"])
}

#[test]
fn a_killed_daemon_loses_what_is_in_flight_and_leaves_the_net_below_and_addresses() {
    let _alone = alone();
    let Some(rows) = repeat("kill", "50", "ipv6") else { return };
    let mut lost = Vec::new();
    for row in rows {
        let [kill] = row["timeline"]["events"].as_array().expect("events").as_slice() else {
            panic!("one event: {row}")
        };
        eprintln!("{} queries/s: {kill}, {} lost", row["rate"], row["lost"]);
        let second = number(&row["queries"]) / 3;
        let in_flight = number(&kill["in_flight"]) + overruns(&row);
        let beyond = number(&row["lost"]).saturating_sub(in_flight);
        // On a starved machine the kernel takes its time to end a process; after a second it is open anyway.
        assert!(beyond <= second, "{row}");
        lost.push(beyond * 1000 / second);
        assert_eq!((&row["given_up"], &row["failed"]), (&0.into(), &0.into()), "{row}");
        let last = |side: &str| {
            let steps = row["timeline"][side].as_array().expect("steps");
            steps.iter().rev().take(10).map(number).sum::<u64>()
        };
        assert!(last("cluster") > 0 && last("nodens") == 0, "the cluster DNS answers: {row}");
        assert_eq!(row["left_behind"]["tables"], serde_json::json!(["nodens-below"]), "{row}");
    }
    // Half of the kills at least take nothing but what is in flight, and what comes in 20 ms.
    lost.sort_unstable();
    assert!(lost.get(lost.len() / 2).is_some_and(|median_ms| *median_ms <= 20), "{lost:?}");
}

#[test]
fn a_stopped_daemon_falls_open_and_takes_queries_again_when_it_goes_on() {
    let _alone = alone();
    for row in repeat("stop", "20", "ipv4").unwrap_or_default() {
        let events = row["timeline"]["events"].as_array().expect("events");
        eprintln!("{} queries/s: {events:?}, {} lost", row["rate"], row["lost"]);
        let [stop, _] = events.as_slice() else { panic!("two events: {row}") };
        // Within a second; whoever counts the seconds is starved at times.
        let settled = stop["settled_ms"].as_f64().expect("a number");
        assert!(settled < 2000.0, "{row}");
        assert_eq!((&row["given_up"], &row["failed"]), (&0.into(), &0.into()), "{row}");
        let steps = row["timeline"]["nodens"].as_array().expect("steps");
        assert!(steps.iter().rev().take(10).map(number).sum::<u64>() > 0, "it is back: {row}");
    }
}

#[test]
fn an_upgrade_loses_no_query_and_cuts_no_connection_off() {
    let _alone = alone();
    let Some(rows) = repeat("upgrade", "50", "ipv4") else { return };
    let mut clean = 0;
    for row in rows {
        eprintln!("{} queries/s: {} lost, {}", row["rate"], row["lost"], row["tcp"]);
        assert!(number(&row["lost"]) <= overruns(&row), "{row}");
        assert_eq!((&row["given_up"], &row["failed"]), (&0.into(), &0.into()), "{row}");
        // An instance that was starved of CPU fell open: the cluster DNS answered, and connections were cut.
        let cluster = row["timeline"]["cluster"].as_array().expect("steps");
        if row["lapses"] == 0 && cluster.iter().map(number).sum::<u64>() == 0 {
            clean += 1;
            assert_eq!(row["tcp"]["broken"], 0, "{row}");
            assert!(number(&row["tcp"]["closed"]) >= 50, "the old one closes what idles: {row}");
        }
    }
    assert!(clean > 0, "starved in every upgrade");
}

#[test]
fn in_bind_mode_a_killed_daemon_leaves_its_address_and_pods_without_answers() {
    let _alone = alone();
    let arguments = ["--scenario", "kill", "--nodens", "with", "--nodens", "bind", "--json"];
    let mut command = lab(&arguments);
    command.args(["--family", "ipv4", "--rate", "500", "--timeout", "500ms"]);
    let Some(rows) = rows_of(command) else { return };
    let [with, bind] = rows.as_slice() else { panic!("two rows: {rows:?}") };
    assert_eq!((&with["nodens"], &bind["nodens"]), (&"with".into(), &"bind".into()));
    let killed_ms = number(&bind["timeline"]["events"][0]["at_ms"]);
    let after = number(&bind["queries"]) * 3000_u64.saturating_sub(killed_ms) / 3000;
    eprintln!("{after} queries after the kill: {} given up, {with}", bind["given_up"]);
    assert!(number(&bind["given_up"]) >= after * 9 / 10, "{bind}");
    assert!(number(&with["given_up"]) <= after / 10, "{with}");
    let addresses = |row: &Value| row["left_behind"]["addresses"].to_string();
    assert!(addresses(bind).contains("\"10.96.0.10\""), "{bind}");
    assert!(!addresses(with).contains("\"10.96.0.10\""), "{with}");
}

#[test]
fn executors_find_a_driver_that_they_asked_for_too_early_as_soon_as_it_exists() {
    let _alone = alone();
    let mut command = lab(&["--scenario", "spark", "--rounds", "2000", "--json"]);
    command.args(["--family", "ipv6"]);
    let Some(rows) = rows_of(command) else { return };
    let [without, with] = rows.as_slice() else { panic!("two rows: {rows:?}") };
    for row in [without, with] {
        eprintln!("{}: {}, {} stale", row["nodens"], row["drivers"], row["stale"]);
        assert_eq!((&row["drivers"]["made"], &row["drivers"]["found"]), (&2.into(), &2.into()));
        assert_eq!(row["failed"], 0, "{row}");
        // Half of the responses, if what was said before the Service was made had stayed. A starved load asks too
        // late, and so calls the right response a wrong one.
        assert!(number(&row["stale"]) * 5 <= number(&row["queries"]), "{row}");
    }
}

/// Makes the command, and all that it starts, fail with EPERM where it unshares any of `flags`.
fn refuse_unshare(command: &mut Command, flags: u32) {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let unshare = u32::try_from(libc::SYS_unshare).expect("a small number");
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    // Load the number of the call; not unshare: allow; load its argument; none of the flags: allow; refuse.
    let filter = [
        step(0x20, 0, 0, 0),
        step(0x15, 0, 2, unshare),
        step(0x20, 0, 0, 16),
        step(0x45, 1, 0, flags),
        step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(0x06, 0, 0, refusal),
    ];
    let install = move || {
        let program =
            libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: plain system calls, with a program that outlives them.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
                    != 0
        };
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}

#[test]
fn a_sandbox_that_refuses_namespaces_is_named_with_its_mend() {
    // A container's usual profile refuses all of it. AppArmor gives a user namespace without any power in it.
    let network = libc::CLONE_NEWNET as u32;
    for (flags, what) in [(u32::MAX, "user namespace"), (network, "network namespace")] {
        for user in users() {
            let mut command = lab_as(user, &[]);
            refuse_unshare(&mut command, flags);
            let output = command.output().expect("the executable starts");
            let told = String::from_utf8_lossy(&output.stderr);
            eprintln!("{told}");
            assert_eq!(output.status.code(), Some(1), "{told}");
            for words in [what, "AppArmor or seccomp refuses a", "sysctl", "seccomp profile"] {
                assert!(told.contains(words), "{words}: {told}");
            }
            assert_eq!(told.trim().lines().count(), 1, "said once: {told}");
        }
    }
}

#[test]
fn a_refused_user_namespace_is_told_with_its_mend() {
    let user = users().pop().flatten();
    // Inside a user namespace of its own, the limit is its own too.
    let program = lab_as(user, &[]).get_program().to_owned();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    command.arg("echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" lab");
    command.arg(program).stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().expect("unshare runs");
    let told = String::from_utf8_lossy(&output.stderr);
    if told.contains("unshare failed") {
        assert!(std::env::var_os("CI").is_none(), "CI must allow user namespaces: {told}");
        return eprintln!("CANNOT RUN: {told}");
    }
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("refuses a user namespace") && told.contains("max_user_namespaces"),
        "{told}"
    );
}

#[test]
fn a_kept_lab_can_be_entered_by_the_printed_line() {
    let _alone = alone();
    for user in users() {
        let mut child = lab_as(user, &["--keep", "--topology", "routed", "--scenario", "snat"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the executable starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let told: Vec<_> = lines
            .by_ref()
            .map_while(Result::ok)
            .take_while(|line| !line.contains("Ctrl-C"))
            .collect();
        if told.is_empty() {
            let stderr = child.stderr.take().map(read_all).unwrap_or_default();
            let status = child.wait().expect("it is ours");
            assert!(
                is_refused(&Output { status, stdout: Vec::new(), stderr: stderr.clone() }),
                "{}",
                String::from_utf8_lossy(&stderr)
            );
            return;
        }
        let line = told.iter().find(|line| line.starts_with("pod-0")).expect("a line for each pod");
        let mut words = line.split_whitespace().skip(1);
        let mut enter = Command::new(words.next().expect("a command"));
        enter.args(words).args([
            "dig",
            "+short",
            "+tries=3",
            "@10.96.0.10",
            "web-1.default.svc.cluster.local",
        ]);
        if let Some(user) = user {
            enter.uid(user).gid(user).current_dir("/");
        }
        let output = enter.output().expect("nsenter runs");
        let _ = child.kill();
        let _ = child.wait();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), "10.96.1.1", "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// `nodens bench` from two addresses of a pod, same port and same instant, as two pods might: its exit code and report.
fn bench_in_pod(side: &str) -> Option<(Option<i32>, Value)> {
    let nodens = env!("CARGO_BIN_EXE_nodens");
    let script = format!(
        "ip address add 10.244.0.200/24 dev eth0; \
         own=$(ip -4 -o address show dev eth0 | sed -n '1s:.*inet \\([^/]*\\)/.*:\\1:p'); \
         exec {nodens} bench 10.96.0.10 -q --single --name web-1.default.svc.cluster.local \
         --sources $own,10.244.0.200 --ports 1024-65535 --qps 2000 --duration 4s --timeout 2s \
         --fail-if 'stalls > 0' --fail-if 'lost > 0' --json -"
    );
    let mut command = lab(&["--nodens", side, "--", "sh", "-c", &script]);
    let output = command.output().expect("the executable starts");
    if is_refused(&output) {
        return None;
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{told}"));
    let server = &report["servers"][0];
    eprintln!("{side} nodens: {} sent, {} lost", server["sent"], server["lost"]);
    Some((output.status.code(), report))
}

#[test]
fn the_bench_in_a_pod_fails_its_gates_without_nodens_and_holds_them_with_it() {
    let _alone = alone();
    // A loaded machine keeps two threads from one microsecond, or starves nodens, at times.
    let mut runs = (0..4).map_while(|_| bench_in_pod("without"));
    let lossy = runs.find(|(code, report)| {
        let server = &report["servers"][0];
        let is_lossy = number(&server["lost"]) > 0 && number(&server["stalls"]["1s"]) > 0;
        assert_eq!(*code, Some(if is_lossy { 3 } else { 0 }), "{report}");
        is_lossy
    });
    let Some(mut runs) = bench_in_pod("with")
        .map(|first| std::iter::once(first).chain((0..3).map_while(|_| bench_in_pod("with"))))
    else {
        return;
    };
    assert!(lossy.is_some(), "no race in four attempts");
    assert!(runs.any(|(code, _)| code == Some(0)), "nodens starved in four attempts");
}

/// The command line of the container in a recipe.
fn recipe(name: &str, pod: &str) -> Vec<String> {
    let path = format!("{}/deploy/ci/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).expect("the recipe");
    let recipe: Value = serde_saphyr::from_str(&text).expect("YAML");
    let container = recipe.pointer(&format!("{pod}/spec/containers/0")).expect("a container");
    let words = ["command", "args"].map(|key| container[key].as_array().expect("words").clone());
    words.iter().flatten().map(|word| word.as_str().expect("a word").to_owned()).collect()
}

#[test]
fn the_command_line_of_the_job_runs_in_a_pod_as_it_is_written() {
    let _alone = alone();
    let line = recipe("job.yaml", "/spec/template");
    assert_eq!(line, recipe("cronjob.yaml", "/spec/jobTemplate/spec/template"));
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_nodens"));
    let folder = program.parent().expect("a folder").display();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    // A starved machine may need longer than the recipe's limit for p99, and lose what the others count.
    let held = (0..3).any(|_| {
        let mut command = lab(&["--nodens", "with", "--"]);
        let output = command.args(&line).env("PATH", &path).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
        is_refused(&output) || {
            assert_eq!(text.matches(": fail if ").count(), 3, "{text}");
            let failed: Vec<_> = text.lines().filter(|line| line.starts_with("FAILS")).collect();
            let code = if failed.is_empty() { 0 } else { 3 };
            assert_eq!(output.status.code(), Some(code), "{text}");
            failed.iter().all(|line| line.contains("p99"))
        }
    });
    assert!(held);
}

#[test]
fn killing_the_command_leaves_no_process_and_no_namespace() {
    let _alone = alone();
    for signal in ["KILL", "INT"] {
        // Whoever started us in the background may have made us deaf to Ctrl-C.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_nodens"), "lab"])
            .args(["--scenario", "snat", "--rounds", "1000000"])
            .stdin(Stdio::null())
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
