//! The admin interface: endpoints, probes, two instances side by side.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use crate::harness::place::free_port;
use crate::harness::{Action, Daemon, Setup, Sink, ask, http, needs, qtype, sink, until, wire};

fn parts() -> (Sink, Daemon) {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    (sink, daemon)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[test]
fn every_endpoint_answers_over_the_socket_and_over_tcp() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let admin = loopback(free_port());
    let daemon = Setup::towards(sink.address).admin(admin).start();
    wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    for (target, says) in [
        ("/livez", ""),
        ("/readyz", ""),
        ("/metrics", "coredns_dns_requests_total"),
        ("/config", "upstreams"),
        ("/upstreams", &sink.address.to_string()),
        ("/cache", "entries"),
    ] {
        let by_tcp = http::over_tcp(admin, "GET", target, "").expect("TCP");
        for reply in [daemon.admin(target), by_tcp] {
            assert_eq!(reply.status, 200, "{target}: {reply:?}");
            assert!(reply.body.contains(says), "{target}: no {says} in {}", reply.body);
        }
    }
    let metrics = daemon.admin("/metrics");
    assert!(metrics.head.contains("application/openmetrics-text"), "{}", metrics.head);
    assert!(metrics.body.ends_with("# EOF\n"));
    assert_eq!(daemon.admin("/nowhere").status, 404);
}

#[test]
fn probe_tells_by_its_exit_code_whether_the_daemon_lives_and_is_ready() {
    let (_sink, daemon) = parts();
    for what in ["live", "ready"] {
        let output = daemon.command(&["probe", what]);
        assert_eq!(output.status.code(), Some(0), "{what}: {output:?}");
    }
    let place = crate::harness::Place::new();
    let output = Command::new(env!("CARGO_BIN_EXE_nodens"))
        .args(["probe", "live", "--socket"])
        .arg(place.path("nobody.sock"))
        .output()
        .expect("the executable runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_daemon_whose_upstream_is_silent_lives_and_is_ready_after_five_seconds() {
    let sink = Sink::start(|_| Action::Ignore);
    let daemon = Setup::towards(sink.address).start_unready();
    assert_eq!(daemon.admin("/readyz").status, 503, "nobody has answered yet");
    assert_eq!(daemon.command(&["probe", "ready"]).status.code(), Some(1));
    assert_eq!(daemon.command(&["probe", "live"]).status.code(), Some(0));
    assert!(until(Duration::from_secs(10), || daemon.admin("/readyz").status == 200));
}

#[test]
fn losing_the_upstream_later_does_not_make_it_unready_or_dead() {
    let (sink, daemon) = parts();
    drop(sink);
    for number in 0..5 {
        wire::udp(daemon.address(), &ask(&format!("n{number}.example.org"), qtype::A));
    }
    for target in ["/readyz", "/livez"] {
        assert_eq!(daemon.admin(target).status, 200, "{target}");
    }
}

#[test]
fn a_stopped_daemon_is_not_taken_for_a_living_one() {
    let (_sink, daemon) = parts();
    daemon.process.signal(libc::SIGSTOP);
    let socket = daemon.place.path("admin.sock");
    let mut probe = Command::new(env!("CARGO_BIN_EXE_nodens"));
    probe.args(["probe", "live", "--socket"]).arg(socket);
    let start = std::time::Instant::now();
    let output = probe.output().expect("the executable runs");
    daemon.process.signal(libc::SIGCONT);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn a_busy_admin_address_is_a_warning_and_tried_again() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let admin = holder.local_addr().expect("an address");
    let daemon = Setup::towards(sink.address).admin(admin).start();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
    assert!(daemon.log().contains(&admin.to_string()), "the log says so: {}", daemon.log());
    drop(holder);
    let served = until(Duration::from_secs(8), || {
        http::over_tcp(admin, "GET", "/livez", "").is_some_and(|reply| reply.status == 200)
    });
    assert!(served, "{}", daemon.log());
}

#[test]
fn a_second_instance_takes_the_socket_and_the_first_leaves_it_alone() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let mut first = Setup::towards(sink.address).start();
    let socket = first.place.path("admin.sock");
    let place = crate::harness::Place::new();
    let port = free_port();
    let config = place.write(
        "nodens.toml",
        &format!(
            "listen = [\"127.0.0.1:{port}\"]\nupstreams = [\"{}\"]\n[admin]\nlisten = []\nsocket = {socket:?}\n",
            sink.address
        ),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.args(["run", "--config"]).arg(config);
    let second = Daemon::run(command, place, port, String::new());
    let ours = |what: &str| {
        http::over_socket(&socket, "GET", "/config", "")
            .is_some_and(|reply| reply.body.contains(what))
    };
    let here = format!("127.0.0.1:{port}");
    assert!(until(Duration::from_secs(10), || ours(&here)), "the newer one: {}", second.log());
    first.process.signal(libc::SIGTERM);
    first.process.wait(Duration::from_secs(8)).expect("an end");
    assert!(ours(&here), "the older one did not take the newer one's socket with it");
    let answer = wire::udp(second.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
}

#[test]
fn what_was_asked_is_counted_under_coredns_names() {
    needs!("::1");
    let (_sink, daemon) = parts();
    for _ in 0..3 {
        wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    }
    wire::tcp(daemon.address6(), &ask("www.example.org", qtype::AAAA).dnssec_ok());
    let requests = |label: &str| daemon.metric("coredns_dns_requests_total", label);
    assert_eq!(requests("type=\"A\""), 3.0);
    assert_eq!(requests("proto=\"tcp\""), 1.0);
    assert_eq!(requests("family=\"2\""), 1.0);
    assert_eq!(daemon.metric("coredns_dns_do_requests_total", ""), 1.0);
    assert_eq!(daemon.metric("coredns_dns_responses_total", "rcode=\"NOERROR\""), 4.0);
    assert_eq!(daemon.metric("coredns_cache_hits_total", ""), 2.0);
    assert!(daemon.metric("nodens_upstream_queries_total", "") >= 2.0);
}

#[test]
fn the_log_level_changes_at_run_time() {
    let sink = Sink::start(|seen| seen.reply().rcode(2).now());
    let daemon = Setup::towards(sink.address).start();
    let socket = daemon.place.path("admin.sock");
    wire::udp(daemon.address(), &ask("before.example.org", qtype::A));
    let reply =
        http::over_socket(&socket, "POST", "/log-level?level=nodens%3Ddebug", "").expect("a reply");
    assert!(reply.status < 300, "{reply:?}");
    let reply =
        http::over_socket(&socket, "POST", "/log-level?level=nodens%3Dloud", "").expect("a reply");
    assert_eq!(reply.status, 400, "{reply:?}");
    wire::udp(daemon.address(), &ask("after.example.org", qtype::A));
    let logged = until(Duration::from_secs(5), || daemon.log().contains("after.example.org"));
    assert!(logged, "failures are logged at level debug: {}", daemon.log());
    assert!(!daemon.log().contains("before.example.org"), "and not at info: {}", daemon.log());
}

#[test]
fn queries_are_logged_where_wanted_as_json() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon =
        Setup::towards(sink.address).tables("[log]\nformat = \"json\"\nqueries = 1.0").start();
    wire::udp(daemon.address(), &ask("logged.example.org", qtype::A));
    let logged = until(Duration::from_secs(5), || daemon.log().contains("logged.example.org"));
    assert!(logged, "{}", daemon.log());
    assert!(daemon.log().contains("NOERROR"), "{}", daemon.log());
    for line in daemon.log().lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "JSON: {line}");
    }
}
