//! Reload: by SIGHUP and by change of the file; a bad file changes nothing; no query is lost.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use crate::harness::load::Load;
use crate::harness::place::free_port;
use crate::harness::unbound::Unbound;
use crate::harness::{Daemon, Knot, Place, Setup, Sink, ask, needs, qtype, rcode, until, wire};

/// An upstream that answers every A query with 192.0.2.`last`.
fn upstream(last: u8) -> Sink {
    Sink::start(move |seen| seen.reply().a(seen, 0, [192, 0, 2, last]).now())
}

/// The address that the daemon answers with now.
fn answered(daemon: &Daemon) -> String {
    wire::udp(daemon.address(), &ask("www.example.org", qtype::A)).data(qtype::A).join(" ")
}

/// Waits until the daemon answers with 192.0.2.`last`.
fn comes_to_answer(daemon: &Daemon, last: u8) -> bool {
    let wanted = format!("192.0.2.{last}");
    until(Duration::from_secs(10), || answered(daemon) == wanted)
}

#[test]
fn sighup_brings_the_new_upstream() {
    let (old, new) = (upstream(1), upstream(2));
    let daemon = Setup::towards(old.address).start();
    assert_eq!(answered(&daemon), "192.0.2.1");
    daemon.reload(&daemon.text.replace(&old.address.to_string(), &new.address.to_string()));
    assert!(comes_to_answer(&daemon, 2), "{}", daemon.log());
    assert!(daemon.metric("nodens_reloads_total", "") >= 1.0);
}

#[test]
fn a_change_of_the_file_alone_is_enough() {
    let (old, new) = (upstream(1), upstream(2));
    let daemon = Setup::towards(old.address).start();
    assert_eq!(answered(&daemon), "192.0.2.1");
    let text = daemon.text.replace(&old.address.to_string(), &new.address.to_string());
    std::fs::write(daemon.config(), text).expect("the configuration file");
    assert!(comes_to_answer(&daemon, 2), "{}", daemon.log());
}

#[test]
fn a_swapped_symlink_is_a_change_as_kubernetes_makes_it() {
    let (old, new) = (upstream(1), upstream(2));
    let (place, port) = (Place::new(), free_port());
    let folder = |name: &str, sink: &Sink| {
        std::fs::create_dir(place.path(name)).expect("a folder");
        let socket = place.path("admin.sock");
        place.write(
            &format!("{name}/nodens.toml"),
            &format!(
                "listen = [\"127.0.0.1:{port}\"]\nupstreams = [\"{}\"]\n[admin]\nlisten = []\nsocket = {socket:?}\n",
                sink.address
            ),
        );
    };
    folder("..2026_01", &old);
    folder("..2026_02", &new);
    // ConfigMap volumes: nodens.toml -> ..data/nodens.toml, ..data -> ..2026_01, swapped by rename.
    symlink("..2026_01", place.path("..data")).expect("a symlink");
    symlink("..data/nodens.toml", place.path("nodens.toml")).expect("a symlink");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.args(["run", "--config"]).arg(place.path("nodens.toml"));
    let mut daemon = Daemon::run(command, place, port, String::new());
    daemon.wait_for("/readyz");
    assert_eq!(answered(&daemon), "192.0.2.1");
    let place = &daemon.place;
    symlink("..2026_02", place.path("..data_tmp")).expect("a symlink");
    std::fs::rename(place.path("..data_tmp"), place.path("..data")).expect("a swap");
    assert!(comes_to_answer(&daemon, 2), "{}", daemon.log());
}

#[test]
fn a_bad_file_keeps_the_old_configuration_and_is_counted() {
    let (old, new) = (upstream(1), upstream(2));
    let daemon = Setup::towards(old.address).start();
    let text = daemon.text.replace(&old.address.to_string(), &new.address.to_string());
    daemon.reload(&(text.clone() + "\nnonsense = 1\n"));
    let counted =
        until(Duration::from_secs(10), || daemon.metric("coredns_reload_failed_total", "") >= 1.0);
    assert!(counted, "{}", daemon.log());
    assert_eq!(answered(&daemon), "192.0.2.1", "the old one stays whole");
    assert!(daemon.log().contains("nonsense"), "the log says why: {}", daemon.log());
    daemon.reload(&text);
    assert!(comes_to_answer(&daemon, 2), "and a good one works again: {}", daemon.log());
}

#[test]
fn a_reload_into_a_written_loop_keeps_the_old_upstreams() {
    let old = upstream(1);
    let daemon = Setup::towards(old.address).start();
    daemon.reload(&daemon.text.replace(&old.address.to_string(), &daemon.address().to_string()));
    let counted =
        until(Duration::from_secs(10), || daemon.metric("coredns_reload_failed_total", "") >= 1.0);
    assert!(counted, "{}", daemon.log());
    assert_eq!(answered(&daemon), "192.0.2.1");
}

#[test]
fn a_loop_through_another_server_is_found_and_said_and_ends_nothing() {
    needs!("unbound");
    let port = free_port();
    // Unbound forwards to the daemon, which forwards to unbound.
    let unbound = Unbound::unasked(([127, 0, 0, 1], port).into());
    let daemon = Setup::towards(unbound.address).port(port).start_unready();
    let found =
        until(Duration::from_secs(20), || daemon.metric("nodens_loops_found_total", "") >= 1.0);
    assert!(found, "{}", daemon.log());
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.rcode(), rcode::SERVFAIL);
    assert!(daemon.log().contains("forwards back to us"), "{}", daemon.log());
    assert_eq!(answer.ede().len(), 1, "the response says why too");
}

#[test]
fn a_change_of_upstreams_under_load_loses_no_query() {
    needs!("knotd", "dnsperf");
    let (first, second) = (Knot::start(), Knot::start());
    let daemon = Setup::towards(first.address).start();
    let names = (0..100_000).map(|number| format!("u{number}.wild.example.org A")).collect();
    let mut load = Load::full_speed(6, names).rate(1500).start(daemon.address());
    let texts = [
        daemon.text.replace(&first.address.to_string(), &second.address.to_string()),
        daemon.text.clone() + "[cache]\nstale = \"2h\"\n",
        daemon.text.clone(),
    ];
    let mut reloads = 0;
    while load.is_running() {
        daemon.reload(&texts[reloads % texts.len()]);
        reloads += 1;
        std::thread::sleep(Duration::from_millis(400));
    }
    let report = load.report();
    assert_eq!((report.lost, report.sent), (0, report.completed), "{}", report.text);
    assert_eq!(report.rcodes.keys().collect::<Vec<_>>(), ["NOERROR"], "{}", report.text);
    assert!(reloads >= 5 && daemon.metric("nodens_reloads_total", "") >= 5.0, "{}", daemon.log());
}

#[test]
fn a_change_of_cache_policy_alone_keeps_what_is_cached() {
    let sink = Sink::start(|seen| seen.reply().a(seen, 300, [192, 0, 2, 1]).now());
    let daemon = Setup::towards(sink.address).start();
    assert_eq!(answered(&daemon), "192.0.2.1");
    daemon.reload(&(daemon.text.clone() + "[cache]\nstale = \"2h\"\n"));
    assert!(until(Duration::from_secs(10), || daemon.metric("nodens_reloads_total", "") >= 1.0));
    assert_eq!(answered(&daemon), "192.0.2.1");
    assert_eq!(sink.seen_for("www.example.org.").len(), 1, "no query more");
}

#[test]
fn resolv_conf_is_read_again_when_it_changes() {
    let place = Place::new();
    // Names of ports are no part of resolv.conf: two upstreams on port 53 of two loopback addresses.
    crate::harness::namespace::inside(|| {
        let at = |address: &str| format!("{address}:53").parse().expect("an address");
        let script = |last: u8| {
            move |seen: &crate::harness::Seen| seen.reply().a(seen, 0, [192, 0, 2, last]).now()
        };
        let _old = Sink::at(at("127.0.0.21"), script(1));
        let _new = Sink::at(at("127.0.0.22"), script(2));
        let file = place.write("resolv.conf", "nameserver 127.0.0.21\n");
        let (here, port) = (Place::new(), free_port());
        let config = here.write(
            "nodens.toml",
            &format!(
                "listen = [\"127.0.0.1:{port}\"]\nresolv_conf = {file:?}\n[admin]\nlisten = []\nsocket = {:?}\n",
                here.path("admin.sock")
            ),
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.args(["run", "--config"]).arg(config);
        let mut daemon = Daemon::run(command, here, port, String::new());
        daemon.wait_for("/readyz");
        assert_eq!(answered(&daemon), "192.0.2.1");
        place.write("resolv.conf", "nameserver 127.0.0.22\n");
        assert!(comes_to_answer(&daemon, 2), "{}", daemon.log());
        place.write("resolv.conf", "nameserver 127.0.0.1\n");
        std::thread::sleep(Duration::from_secs(3));
        let next = place.write("resolv.conf.new", "nameserver 127.0.0.21\n");
        std::fs::rename(next, &file).expect("replaced by rename, as most programs do");
        assert!(comes_to_answer(&daemon, 1), "{}", daemon.log());
    });
}

#[test]
fn a_reload_into_a_loop_through_another_server_keeps_the_old_upstreams() {
    needs!("unbound");
    let old = upstream(1);
    let daemon = Setup::towards(old.address).start();
    let unbound = Unbound::unasked(daemon.address());
    daemon.reload(&daemon.text.replace(&old.address.to_string(), &unbound.address.to_string()));
    let counted =
        until(Duration::from_secs(10), || daemon.metric("coredns_reload_failed_total", "") >= 1.0);
    assert!(counted, "{}", daemon.log());
    assert_eq!(answered(&daemon), "192.0.2.1");
}

#[test]
fn a_reload_towards_silent_upstreams_neither_waits_long_nor_holds_sigterm() {
    let (old, silent) = (upstream(1), Sink::start(|_| crate::harness::Action::Ignore));
    let mut daemon = Setup::towards(old.address).start();
    daemon.reload(&daemon.text.replace(&old.address.to_string(), &silent.address.to_string()));
    assert!(until(Duration::from_secs(5), || !silent.seen().is_empty()), "the probe has begun");
    assert_eq!(answered(&daemon), "192.0.2.1", "the old one answers meanwhile");
    daemon.process.signal(libc::SIGTERM);
    let status = daemon.process.wait(Duration::from_secs(5));
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", daemon.log());
}
