//! The executable as people and probes run it: what it prints, and its exit codes.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

/// `nodens` with `arguments`, in an environment without settings of its own.
fn nodens(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NODENS_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end.
fn run(arguments: &[&str]) -> Output {
    nodens(arguments).output().expect("the executable starts")
}

/// Exit code, stdout and stderr.
fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A path of this test process alone.
fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nodens-cli-{}-{name}", std::process::id()))
}

/// A configuration file with this text.
fn file(name: &str, text: &str) -> PathBuf {
    let path = scratch(name);
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn usage_errors_and_bad_configurations_exit_with_2() {
    let bad = file("bad.toml", "[cache]\nsize = \"64Mb\"\nlisten = 1\n");
    let bad = bad.to_str().expect("plain");
    for (arguments, told) in [
        (&["run", "--upstraem", "192.0.2.1"][..], "'--upstream'"),
        (&["run", "--intercept", "sometimes"], "--intercept: "),
        (
            &["run", "--upstream", "127.0.0.1", "--listen", "127.0.0.1"],
            "every query would go round",
        ),
        (&["run", "--config", bad], "\"64Mb\" is not a size"),
        (&["check-config", "--config", bad], "bad.toml:2: [cache] size: "),
        (&["check-config", "--config", bad], "bad.toml:3: unknown key `[cache] listen`"),
        (&["check-config", "--config", "/nowhere.toml"], "/nowhere.toml: cannot be read: "),
        (&["lookup", "a..b"], "\"a..b\" is not a domain name"),
        (&["lookup", "example.org", "NOPE"], "not a record type"),
        (&["lookup", "example.org", "--server", "here"], "--server: \"here\" is not an address"),
        (&["cache", "flush"], "required"),
        (&["probe", "well"], "[possible values: live, ready]"),
    ] {
        let (code, stdout, stderr) = outcome(&run(arguments));
        assert_eq!(code, Some(2), "{arguments:?} {stderr}");
        assert!(stderr.contains(told) && stdout.is_empty(), "{arguments:?} {stderr}");
    }
    std::fs::remove_file(bad).expect("ours");
}

#[test]
fn check_config_prints_a_file_that_means_the_same() {
    let arguments = ["check-config", "--config"];
    let first = file("first.toml", "listen = [\"127.0.0.1:5300\"]\nupstreams = [\"192.0.2.1\"]\n");
    let mut command = nodens(&arguments);
    let output = command.arg(&first).env("NODENS_CACHE__SIZE", "1MiB").output().expect("it runs");
    let (code, effective, stderr) = outcome(&output);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(effective.contains("size = \"1MiB\"") && effective.contains("\"192.0.2.1:53\""));
    let second = file("second.toml", &effective);
    let output = nodens(&arguments).arg(&second).output().expect("it runs");
    assert_eq!(outcome(&output).1, effective);
    for path in [first, second] {
        std::fs::remove_file(path).expect("ours");
    }
}

#[test]
fn a_reader_that_leaves_early_causes_no_complaint() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = nodens(&["completions", "bash"]).stdout(writer).output().expect("it runs");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_lookup_tells_who_answered_and_why() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = server.local_addr().expect("bound").to_string();
    let asked = thread::spawn(move || {
        let mut query = [0; 512];
        let (len, from) = server.recv_from(&mut query).expect("a query");
        // The query as a SERVFAIL whose OPT record, the last thing in it, gets an extended error.
        let mut response = query[..len].to_vec();
        response[2] |= 0x80;
        response[3] |= 0x82;
        response[len - 1] = 10;
        response.extend([0, 15, 0, 6, 0, 22]);
        response.extend(b"down");
        server.send_to(&response, from).expect("sent");
        query[12..len].to_vec()
    });
    let (code, stdout, stderr) = outcome(&run(&["lookup", "192.0.2.7", "--server", &address]));
    assert_eq!(code, Some(0), "{stderr}");
    let (first, rest) = stdout.split_once('\n').expect("two lines");
    assert!(first.starts_with(&format!("SERVFAIL from {address} by UDP in ")), "{stdout}");
    assert!(first.ends_with(" ms (rd ra)"), "{stdout}");
    assert_eq!(rest, "extended error 22 (No Reachable Authority): down\n");
    let question = asked.join().expect("no panic");
    assert!(question.starts_with(b"\x017\x012\x010\x03192\x07in-addr\x04arpa\0\0\x0c\0\x01"));
}

#[test]
fn a_lookup_that_nobody_answers_exits_with_1() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = server.local_addr().expect("bound").to_string();
    let arguments = ["lookup", "example.org", "--server", &address, "--timeout", "50ms"];
    let (code, stdout, stderr) = outcome(&run(&arguments));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("did not answer 2 times within 50ms"), "{stderr}");
    drop(server);
    let (code, _, stderr) = outcome(&run(&arguments));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("nobody listens at"), "{stderr}");
}

#[test]
fn a_probe_says_yes_by_exit_code_0_and_no_by_1() {
    for (status, code) in [("200 OK", 0), ("503 Service Unavailable", 1)] {
        let path = scratch(&format!("probe-{code}.sock"));
        let listener = UnixListener::bind(&path).expect("a new path");
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 512];
            let len = stream.read(&mut request).expect("a request");
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nsee\n").expect("sent");
            String::from_utf8_lossy(&request[..len]).into_owned()
        });
        let socket = path.to_str().expect("plain");
        let (exit, stdout, stderr) = outcome(&run(&["probe", "ready", "--socket", socket]));
        assert_eq!(exit, Some(code), "{stderr}");
        assert!((stdout + &stderr).contains("see"));
        assert!(asked.join().expect("no panic").starts_with("GET /readyz "));
        std::fs::remove_file(&path).expect("ours");
        let (exit, _, stderr) = outcome(&run(&["probe", "live", "--socket", socket]));
        assert_eq!(exit, Some(1));
        assert!(stderr.contains("is nodens running?"), "{stderr}");
    }
}
