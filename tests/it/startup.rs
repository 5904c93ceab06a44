//! What goes wrong at start: one clear line with the mend, and an exit code that says whose fault it is.

use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::place::free_port;
use crate::harness::process::find;
use crate::harness::{Daemon, Place, Setup, Sink, ask, namespace, needs, qtype, sink, wire};

/// Runs `nodens` with these arguments to its end, which must come within 10 s.
fn nodens(arguments: &[&str]) -> Output {
    bounded(Command::new(env!("CARGO_BIN_EXE_nodens")).args(arguments))
}

/// Runs a command to its end, at most 10 s.
fn bounded(command: &mut Command) -> Output {
    let mut child = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the executable runs");
    let ended = crate::harness::until(Duration::from_secs(10), || {
        child.try_wait().expect("our own child").is_some()
    });
    if !ended {
        child.kill().expect("our own child");
    }
    let output = child.wait_with_output().expect("our own child");
    assert!(ended, "it runs on instead of refusing: {output:?}");
    output
}

/// Runs `nodens run` with a configuration file; the exit code and what it says.
fn run_with(text: &str) -> (Option<i32>, String) {
    let place = Place::new();
    let file = place.write("bad.toml", text);
    let output = nodens(&["run", "--config", &file.to_string_lossy()]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_bad_configuration_is_refused_with_file_line_and_the_mend() {
    for (what, text, line, says) in [
        ("an unknown key", "\nlisten = [\"127.0.0.1:0\"]\nalow = []\n", 3, "allow"),
        ("an unknown key in a table", "[cache]\nsizee = \"4MiB\"\n", 2, "size"),
        ("no TOML", "listen = [\n\n", 1, "TOML"),
        ("no address", "\n\nlisten = [\"localhost\"]\n", 3, "localhost"),
        ("no network", "allow = [\"10.0.0.0/33\"]\n", 1, "10.0.0.0/33"),
        ("no size", "[cache]\n\nsize = \"many\"\n", 3, "many"),
        ("a number for a text", "[cache]\nsize = true\n", 2, "true or false"),
        ("out of bounds", "[serve]\nudp_payload = 100\n", 2, "512"),
        (
            "a zone twice",
            "[[forward]]\nzone = \"a.example\"\nupstreams = [\"192.0.2.1\"]\n\
            [[forward]]\nzone = \"A.example.\"\nupstreams = [\"192.0.2.1\"]\n",
            4,
            "a.example",
        ),
        ("a zone without upstreams", "[[forward]]\nzone = \"a.example\"\n", 1, "upstreams"),
        ("too few ports", "upstream_ports = \"40000-40001\"\n", 1, "ports"),
        ("a range backwards", "upstream_ports = \"50000-40000\"\n", 1, "50000"),
    ] {
        let (code, message) = run_with(text);
        assert_eq!(code, Some(2), "{what}: {message}");
        let place = format!("bad.toml:{line}");
        assert!(message.contains(&place), "{what}: no {place} in {message}");
        assert!(message.contains(says), "{what}: no {says} in {message}");
        assert!(!message.contains("panicked"), "{what}: {message}");
    }
}

#[test]
fn a_loop_that_the_configuration_says_is_refused() {
    let port = free_port();
    let text = format!("listen = [\"127.0.0.1:{port}\"]\nupstreams = [\"127.0.0.1:{port}\"]\n");
    let (code, message) = run_with(&text);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("bad.toml:2") || message.contains("bad.toml:1"), "{message}");
}

#[test]
fn an_unreadable_configuration_is_refused_by_name() {
    let output = nodens(&["run", "--config", "/nonexistent/nodens.toml"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("/nonexistent/nodens.toml"), "{message}");
    let place = Place::new();
    let output = nodens(&["run", "--config", &place.as_path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(2), "a folder: {output:?}");
}

#[test]
fn wrong_usage_exits_2_and_says_how() {
    for arguments in [&["run", "--nonsense"][..], &["walk"], &["run", "--listen", "nowhere"]] {
        let output = nodens(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn check_config_prints_the_effective_configuration_and_refuses_a_bad_one() {
    let place = Place::new();
    let good =
        place.write("good.toml", "listen = [\"127.0.0.1:5300\"]\n[cache]\nsize = \"4MiB\"\n");
    let output = nodens(&["check-config", "--config", &good.to_string_lossy()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("127.0.0.1:5300") && text.contains("4MiB"), "{text}");
    let again = place.write("again.toml", &text);
    let second = nodens(&["check-config", "--config", &again.to_string_lossy()]);
    assert_eq!(String::from_utf8_lossy(&second.stdout), text, "what it prints can be read again");
    let bad = place.write("bad.toml", "nonsense = 1\n");
    let output = nodens(&["check-config", "--config", &bad.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn environment_and_flags_lie_on_top_of_the_file() {
    let place = Place::new();
    let file = place.write("nodens.toml", "[cache]\nsize = \"4MiB\"\n[log]\nlevel = \"warn\"\n");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.args(["check-config", "--config", &file.to_string_lossy()]);
    let output = bounded(command.env("NODENS_CACHE__SIZE", "8MiB"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("8MiB") && text.contains("warn"), "{text}");
}

#[test]
fn a_port_in_use_is_said_with_its_address() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let first = Setup::towards(sink.address).start();
    let (listen, upstream) = (first.address().to_string(), sink.address.to_string());
    let output = nodens(&["run", "--listen", &listen, "--upstream", &upstream]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "another nodens holds it: {message}");
    assert!(message.contains(&listen), "{message}");
    let holder = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let listen = holder.local_addr().expect("an address").to_string();
    let output = nodens(&["run", "--listen", &listen, "--upstream", &sink.address.to_string()]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "UDP alone is held: {message}");
    assert!(message.contains(&listen), "{message}");
    let answer = wire::udp(first.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.7"], "the first one still answers alone");
}

#[test]
fn port_53_without_permission_is_said_with_the_mend() {
    needs!("setpriv", "ip");
    namespace::inside(|| {
        let floor = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        assert_eq!(floor.expect("a sysctl").trim(), "1024", "a namespace begins with the default");
        let mut command = Command::new(find("setpriv").expect("looked for above"));
        command.args(["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
        command.args(["--no-new-privs", "--", env!("CARGO_BIN_EXE_nodens"), "run"]);
        command.args(["--listen", "127.0.0.1:53", "--upstream", "127.0.0.2"]);
        let output = bounded(&mut command);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("127.0.0.1:53"), "{message}");
        assert!(message.contains("NET_BIND_SERVICE"), "the mend: {message}");
    });
}

#[test]
fn no_upstream_at_all_is_said_with_the_mend() {
    let place = Place::new();
    let file = place.write("resolv.conf", "# nobody\nsearch example.org\n");
    let config = place.write("nodens.toml", &format!("resolv_conf = {file:?}\n"));
    let listen = format!("127.0.0.1:{}", free_port());
    let output = nodens(&["run", "--config", &config.to_string_lossy(), "--listen", &listen]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    assert!(message.contains("upstream"), "{message}");
    assert!(message.contains("resolv.conf"), "{message}");
}

#[test]
fn completions_and_help_are_printed() {
    let help = nodens(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout);
    for command in ["run", "check-config", "lookup", "probe", "completions"] {
        assert!(text.contains(command), "{command} in {text}");
    }
    let completions = nodens(&["completions", "bash"]);
    assert!(completions.status.success() && !completions.stdout.is_empty());
}

#[test]
fn with_take_over_a_second_instance_shares_the_port_and_stays_when_the_first_leaves() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let mut first = Setup::towards(sink.address).start();
    let (place, listen) = (Place::new(), first.address().to_string());
    let text = format!("[admin]\nlisten = []\nsocket = {:?}\n", place.path("admin.sock"));
    let config = place.write("nodens.toml", &text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.args(["run", "--take-over", "--listen", &listen]);
    command.args(["--upstream", &sink.address.to_string(), "--config"]).arg(config);
    let mut second = Daemon::run(command, place, first.port, text);
    second.wait_for("/readyz");
    for number in 0..50 {
        let question = ask(&format!("n{number}.example.org"), qtype::A);
        assert_eq!(wire::udp(first.address(), &question).data(qtype::A), ["192.0.2.7"]);
        assert_eq!(wire::tcp(first.address(), &question).data(qtype::A), ["192.0.2.7"]);
    }
    first.process.signal(libc::SIGTERM);
    first.process.wait(Duration::from_secs(8)).expect("an end");
    for number in 0..50 {
        let question = ask(&format!("m{number}.example.org"), qtype::A);
        assert_eq!(wire::udp(second.address(), &question).data(qtype::A), ["192.0.2.7"]);
        assert_eq!(wire::tcp(second.address(), &question).data(qtype::A), ["192.0.2.7"]);
    }
}
