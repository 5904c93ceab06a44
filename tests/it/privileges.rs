//! Of what it is started with the daemon keeps two capabilities, and it says which one it misses.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::node::{ASKED, Node};
use crate::harness::process::{cannot_run, command};
use crate::harness::{Daemon, Place, Sink, namespace, needs, sink, until};

/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN, as `/proc/PID/status` writes sets.
const BOTH: &str = "0000000000001400";
const NONE: &str = "0000000000000000";

/// nobody, on Debian.
const NOBODY: &str = "65534";

/// A configuration file in `place` that intercepts; anybody may read it and make sockets beside it.
fn configuration(place: &Place, upstream: &Sink, lines: &str) -> (PathBuf, String) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(place.as_path(), std::fs::Permissions::from_mode(0o777))
        .expect("ours");
    let text = format!(
        "upstreams = [{:?}]\n{lines}\n[admin]\nlisten = []\nsocket = {:?}\n",
        upstream.address.to_string(),
        place.path("admin.sock")
    );
    (place.write("nodens.toml", &text), text)
}

/// Starts `launcher` with `nodens run`, and waits until it takes queries.
fn start(mut launcher: Command, place: Place, (config, text): (PathBuf, String)) -> Daemon {
    launcher.args(["run", "--config"]).arg(config);
    let mut daemon = Daemon::run(launcher, place, 53, text);
    daemon.wait_for("/readyz");
    let is_claiming = || daemon.metric("nodens_intercept_claiming", "") == 1.0;
    assert!(until(Duration::from_secs(5), is_claiming), "{}", daemon.log());
    daemon
}

/// More than any system grants to a process without CAP_NET_ADMIN.
const LARGE: &str = "listen = [\"127.0.0.1:5300\"]\nserve = { receive_buffer = \"1GiB\" }";

/// The values of a line of `/proc/PID/status`, one for each thread.
fn status(daemon: &Daemon, key: &str) -> Vec<String> {
    let tasks =
        std::fs::read_dir(format!("/proc/{}/task", daemon.process.pid())).expect("it lives");
    let value = |task: &Path| {
        let text = std::fs::read_to_string(task.join("status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    tasks.filter_map(|task| value(&task.expect("a thread").path())).collect()
}

/// Every thread has exactly the two capabilities, and cannot gain more.
fn assert_two(daemon: &Daemon) {
    for (key, value) in [
        ("CapPrm", BOTH),
        ("CapEff", BOTH),
        ("CapInh", NONE),
        ("CapAmb", NONE),
        ("NoNewPrivs", "1"),
    ] {
        let values = status(daemon, key);
        assert!(values.len() > 3, "several threads: {values:?}");
        assert!(values.iter().all(|one| one == value), "{key}: {values:?}, not {value}");
    }
}

#[test]
fn started_with_every_capability_it_keeps_two_and_intercepts() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter");
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), Sink::start(|seen| sink::ordinary(seen).now()));
        let place = Place::new();
        let intercept = format!("intercept = {{ mode = \"takeover\", addresses = {ASKED:?} }}");
        let config = configuration(&place, &upstream, &intercept);
        let daemon = start(Command::new(env!("CARGO_BIN_EXE_nodens")), place, config);
        assert_two(&daemon);
        assert!(status(&daemon, "CapBnd").iter().all(|set| set == BOTH), "the bounding set too");
        node.ask_all("with");
        assert_eq!(node.ordinary(), 0, "{}", daemon.log());
        assert!(!daemon.log().contains("socket buffers are smaller"), "{}", daemon.log());
    });
}

#[test]
fn started_by_another_user_it_has_what_the_file_gives() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv", "setcap");
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return cannot_run("file capabilities of the first user namespace need root");
    }
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), Sink::start(|seen| sink::ordinary(seen).now()));
        let (place, programs) = (Place::new(), Place::new());
        let copy = programs.path("nodens");
        std::fs::copy(env!("CARGO_BIN_EXE_nodens"), &copy).expect("copied");
        let mut setcap = command("setcap");
        setcap.arg("cap_net_admin,cap_net_bind_service+ep").arg(&copy);
        assert!(setcap.status().expect("setcap runs").success());
        let intercept = format!("intercept = {{ mode = \"takeover\", addresses = {ASKED:?} }}");
        let config = configuration(&place, &upstream, &intercept);
        let mut launcher = command("setpriv");
        launcher.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]).arg(&copy);
        let daemon = start(launcher, place, config);
        assert_two(&daemon);
        assert_eq!(status(&daemon, "Uid")[0].split_whitespace().next(), Some(NOBODY));
        node.ask_all("with");
        assert_eq!(node.ordinary(), 0, "{}", daemon.log());
    });
}

/// `nodens run` without the capabilities that `setpriv` is told to take away.
fn without(sets: &str) -> Command {
    let mut launcher = command("setpriv");
    launcher.arg(format!("--bounding-set={sets}"));
    launcher.args(["--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--"]);
    launcher.arg(env!("CARGO_BIN_EXE_nodens"));
    launcher
}

#[test]
fn without_the_capability_the_error_names_it_and_the_mode_that_works() {
    needs!("ip", "setpriv");
    namespace::inside(|| {
        let upstream = Sink::start(|seen| sink::ordinary(seen).now());
        let place = Place::new();
        let intercept = format!("intercept = {{ mode = \"takeover\", addresses = {ASKED:?} }}");
        let listen = format!("listen = [\"127.0.0.1:5300\"]\n{intercept}");
        let (config, _) = configuration(&place, &upstream, &listen);
        let output = without("-all")
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .output()
            .expect("it runs and refuses");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("the capability CAP_NET_ADMIN"), "{message}");
        assert!(message.contains("intercept.mode = \"none\""), "{message}");
        // The mode that works without, and the line about what it costs.
        let (config, text) = configuration(&place, &upstream, LARGE);
        let mut launcher = without("-all");
        launcher.args(["run", "--config"]).arg(config);
        let mut daemon = Daemon::run(launcher, place, 5300, text);
        daemon.wait_for("/readyz");
        let log = daemon.log();
        assert_eq!(log.matches("socket buffers are smaller than asked for").count(), 1, "{log}");
        assert!(status(&daemon, "CapPrm").iter().all(|set| set == NONE), "nothing is left");
    });
}

#[test]
fn the_system_calls_are_those_that_the_page_about_seccomp_lists() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "strace");
    let page = include_str!("../../deploy/kubernetes/README.md");
    let list = page.split("## seccomp").nth(1).and_then(|part| part.split("```").nth(1));
    let listed: Vec<_> = list.expect("a list").split_whitespace().skip(1).collect();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), Sink::start(|seen| sink::ordinary(seen).now()));
        let place = Place::new();
        let intercept = format!("intercept = {{ mode = \"takeover\", addresses = {ASKED:?} }}");
        let config = configuration(&place, &upstream, &intercept);
        let trace = place.path("trace");
        let mut launcher = command("strace");
        launcher.args(["-f", "-qq", "-o"]).arg(&trace).arg(env!("CARGO_BIN_EXE_nodens"));
        let mut daemon = start(launcher, place, config);
        node.ask_all("traced");
        daemon.reload(&format!("{}\n[log]\nlevel = \"debug\"\n", daemon.text));
        assert!(until(Duration::from_secs(10), || daemon.log().contains("configuration reloaded")));
        let text = || std::fs::read_to_string(&trace).expect("a trace");
        let pid = text().split_whitespace().next().expect("a line").to_owned();
        assert!(
            command("sh").args(["-c", &format!("kill {pid}")]).status().expect("sh runs").success()
        );
        daemon.process.wait(Duration::from_secs(20)).expect("it ends");
        // "12 read(…", "12 <... read resumed>…", "12 +++ exited", "12 --- SIGTERM".
        let name = |line: &str| {
            let call = line.split_once(' ')?.1.trim_start().split('(').next()?.to_owned();
            call.chars().all(|char| char.is_ascii_alphanumeric() || char == '_').then_some(call)
        };
        let text = text();
        let called: std::collections::BTreeSet<_> = text.lines().filter_map(name).collect();
        assert!(called.contains("capset") && called.contains("sendmmsg"), "{called:?}");
        let missing: Vec<_> =
            called.iter().filter(|call| !listed.contains(&call.as_str())).collect();
        assert!(missing.is_empty(), "not on the page: {missing:?}");
    });
}

/// Makes the folder of the programs reachable for others, in a mount namespace of its own, where a folder
/// above it is closed; then becomes nobody.
const AS_NOBODY: &str = r#"
    become() { setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all -- "$@"; }
    if ! become test -x "$1"; then
        mount --bind "$FOLDER" "$HOLD"
        mount -t tmpfs none "/$(echo "$FOLDER" | cut -d/ -f2)"
        mkdir -p "$FOLDER"
        mount --bind "$HOLD" "$FOLDER"
    fi
    become "$@"
"#;

#[test]
fn the_namespace_tests_pass_for_an_unprivileged_user_too() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv");
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return; // They all ran so already.
    }
    let (hold, this) = (Place::new(), std::env::current_exe().expect("this executable"));
    let folder = Path::new(env!("CARGO_BIN_EXE_nodens")).parent().expect("a folder");
    let output = command("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", AS_NOBODY, "sh"])
        .arg(&this)
        .args(["--test-threads", "1", "--exact"])
        .args([
            "privileges::started_with_every_capability_it_keeps_two_and_intercepts",
            "takeover::pods_and_host_processes_are_answered_by_us_without_conntrack",
            "takeover::a_killed_daemon_leaves_the_ordinary_path_and_the_next_collects_what_it_left",
            "takeover::a_stopped_daemon_falls_open_within_a_second_and_comes_back_when_it_goes_on",
            "takeover::a_second_instance_takes_over_and_the_first_drains",
        ])
        .envs([("FOLDER", folder), ("HOLD", hold.as_path())])
        .output()
        .expect("unshare runs");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && text[0].contains("5 passed"), "{}", text.concat());
    assert!(!text.concat().contains("NOT RUN"), "{}", text.concat());
}
