//! Addresses and links: zone indices, devices, IPv6 upstreams, transports over real servers.

use std::net::ToSocketAddrs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::dnsdist::Dnsdist;
use crate::harness::knot::{BIG, HUGE};
use crate::harness::place::free_port;
use crate::harness::process::find;
use crate::harness::unbound::Unbound;
use crate::harness::{
    Daemon, Knot, Place, Setup, Sink, Udp, ask, namespace, needs, qtype, rcode, sink, until, wire,
};

/// A link of the namespace's own, up, with a peer that nobody uses.
fn add_link(name: &str) {
    namespace::ip(&["link", "add", name, "type", "veth", "peer", "name", "other0"]);
    for end in [name, "other0"] {
        namespace::ip(&["link", "set", end, "up"]);
    }
}

#[test]
fn an_upstream_of_resolv_conf_may_be_link_local_with_its_zone_index() {
    needs!("ip");
    namespace::inside(|| {
        add_link("uplink0");
        namespace::ip(&["address", "add", "fe80::53/64", "dev", "uplink0", "nodad"]);
        let address = ("fe80::53%uplink0", 53).to_socket_addrs().expect("a link").next();
        let sink = Sink::at(address.expect("an address"), |seen| sink::ordinary(seen).now());
        let (place, port) = (Place::new(), free_port());
        let resolv_conf = place.write("resolv.conf", "nameserver fe80::53%uplink0\n");
        let config = place.write(
            "nodens.toml",
            &format!(
                "listen = [\"127.0.0.1:{port}\"]\nresolv_conf = {resolv_conf:?}\n[admin]\nlisten = []\nsocket = {:?}\n",
                place.path("admin.sock")
            ),
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.args(["run", "--config"]).arg(config);
        let mut daemon = Daemon::run(command, place, port, String::new());
        daemon.wait_for("/readyz");
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
        assert_eq!(sink.seen_for("www.example.org.").len(), 1);
    });
}

#[test]
fn an_upstream_may_have_an_ipv6_address() {
    needs!("::1", "knotd");
    let knot = Knot::at((std::net::Ipv6Addr::LOCALHOST, free_port()).into());
    let daemon = Setup::towards(knot.address).start();
    for _ in 0..2 {
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::AAAA));
        assert_eq!(answer.data(qtype::AAAA), ["2001:db8::1"]);
    }
    assert_eq!(
        wire::tcp(daemon.address6(), &ask("big.example.org", qtype::TXT)).answers.len(),
        BIG
    );
}

#[test]
fn a_listener_bound_to_a_device_answers_there_and_nowhere_else() {
    needs!("knotd", "ip");
    namespace::inside(|| {
        add_link("pods0");
        namespace::ip(&["address", "add", "192.0.2.77/32", "dev", "pods0"]);
        let knot = Knot::start();
        let start = |device: &str| {
            let (place, port) = (Place::new(), free_port());
            let config = place.write(
                "nodens.toml",
                &format!(
                    "listen = [{{ address = \"192.0.2.77:{port}\", device = {device:?} }}]\n\
                     upstreams = [\"{}\"]\nallow = [\"0.0.0.0/0\"]\n[admin]\nlisten = []\nsocket = {:?}\n",
                    knot.address,
                    place.path("admin.sock")
                ),
            );
            let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
            command.args(["run", "--config"]).arg(config);
            let mut daemon = Daemon::run(command, place, port, String::new());
            daemon.wait_for("/readyz");
            daemon
        };
        // What a host sends to its own address counts as come by that address's device (not by lo).
        let (by_lo, by_pods) = (start("lo"), start("pods0"));
        let at =
            |daemon: &Daemon| format!("192.0.2.77:{}", daemon.port).parse().expect("an address");
        let question = ask("www.example.org", qtype::A);
        assert_eq!(wire::udp(at(&by_pods), &question).data(qtype::A), ["192.0.2.1"]);
        let stub = Udp::to(at(&by_lo));
        stub.send(&question.to_wire());
        assert_eq!(stub.receive(wire::SILENCE), None, "the query did not come by that device");
    });
}

#[test]
fn an_upstream_over_tcp_carries_many_queries_on_few_connections() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(format!("tcp://{}", knot.address)).start();
    let stub = Udp::to(daemon.address());
    for number in 0..300 {
        let answer = stub.exchange(&ask(&format!("u{number}.wild.example.org"), qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.200"]);
    }
    assert_eq!(
        wire::tcp(daemon.address(), &ask("huge.example.org", qtype::TXT)).answers.len(),
        HUGE
    );
    let opened = daemon.metric("coredns_proxy_conn_cache_misses_total", "");
    assert!((1.0..20.0).contains(&opened), "{opened} connections for 301 queries");
}

#[test]
fn upstreams_over_tls_and_https_are_verified_and_asked() {
    needs!("knotd", "unbound");
    let knot = Knot::start();
    let unbound = Unbound::encrypted(knot.address, "dns.example.org");
    for (scheme, port, path) in
        [("tls", unbound.tls.port(), ""), ("https", unbound.https.port(), "/dns-query")]
    {
        let start = |name: &str| {
            Setup::towards(format!("{scheme}://127.0.0.1:{port}{path}#{name}"))
                .forward(&format!("tls_ca = {:?}", unbound.ca))
                .forward("timeout = \"2s\"")
        };
        let daemon = start("dns.example.org").start();
        for number in 0..20 {
            let question = ask(&format!("u{number}.wild.example.org"), qtype::AAAA);
            let answer = wire::udp(daemon.address(), &question);
            assert_eq!(answer.data(qtype::AAAA), ["2001:db8::200"], "{scheme}: {}", daemon.log());
        }
        let whole = wire::tcp(daemon.address(), &ask("huge.example.org", qtype::TXT));
        assert_eq!(whole.answers.len(), HUGE, "{scheme}");
        let wrong = start("other.example.org").start_unready();
        let answer = wire::udp(wrong.address(), &ask("www.example.org", qtype::A));
        assert_eq!(answer.rcode(), rcode::SERVFAIL, "{scheme}: a certificate of another name");
    }
}

#[test]
fn dnsdist_by_tls_and_https_is_verified_by_its_authority_and_its_restart_costs_no_query() {
    needs!("knotd", "dnsdist");
    let knot = Knot::start();
    let name = "dns.example.org";
    let [mut dnsdist, stranger] = [(); 2].map(|()| Dnsdist::start(knot.address, name));
    for (scheme, path) in [("tls", ""), ("https", "/dns-query")] {
        let at = if scheme == "tls" { dnsdist.tls } else { dnsdist.https };
        let start = |ca: &Path, name: &str| {
            Setup::towards(format!("{scheme}://{at}{path}#{name}"))
                .forward(&format!("tls_ca = {ca:?}\ntimeout = \"8s\""))
        };
        let daemon = start(&dnsdist.ca, name).start();
        let ask_some = |tag: &str| {
            for number in 0..20 {
                let question = ask(&format!("{tag}{number}.wild.example.org"), qtype::A);
                let answer = wire::udp(daemon.address(), &question);
                assert_eq!(answer.data(qtype::A), ["192.0.2.200"], "{scheme}: {}", daemon.log());
            }
        };
        ask_some("before");
        dnsdist.restart();
        ask_some("after");
        let whole = wire::tcp(daemon.address(), &ask("big.example.org", qtype::TXT));
        assert_eq!(whole.answers.len(), BIG, "{scheme}");
        for (ca, name) in [(&stranger.ca, name), (&dnsdist.ca, "other.example.org")] {
            let wary = start(ca, name).start_unready();
            let answer = wire::udp(wary.address(), &ask("www.example.org", qtype::A));
            assert_eq!(answer.rcode(), rcode::SERVFAIL, "{scheme} {name}");
        }
    }
}

#[test]
fn a_daemon_without_any_privilege_answers() {
    needs!("knotd", "setpriv");
    let knot = Knot::start();
    let (place, port) = (Place::new(), free_port());
    let config = place.write(
        "nodens.toml",
        &format!(
            "listen = [\"127.0.0.1:{port}\"]\nupstreams = [\"{}\"]\n[admin]\nlisten = []\nsocket = {:?}\n",
            knot.address,
            place.path("admin.sock")
        ),
    );
    let mut command = Command::new(find("setpriv").expect("looked for above"));
    command.args(["--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]);
    // Only who has capabilities may drop them from the bounding set.
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } == 0 {
        command.arg("--bounding-set=-all");
    }
    command.args(["--", env!("CARGO_BIN_EXE_nodens"), "run", "--config"]).arg(config);
    let mut daemon = Daemon::run(command, place, port, String::new());
    daemon.wait_for("/readyz");
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.1"], "{}", daemon.log());
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn what_the_kernel_drops_before_us_is_counted() {
    needs!("ip");
    namespace::inside(|| {
        let sink = Sink::start(|seen| sink::ordinary(seen).now());
        let daemon = Setup::towards(sink.address)
            .tables("[serve]\nthreads = 1\nreceive_buffer = \"64KiB\"")
            .start();
        wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        daemon.process.signal(libc::SIGSTOP);
        let stub = Udp::to(daemon.address());
        let question = ask("www.example.org", qtype::A).to_wire();
        for _ in 0..3000 {
            stub.send(&question);
        }
        daemon.process.signal(libc::SIGCONT);
        // What the daemon read, not what it answered: the stub's own receive buffer may overflow too.
        let counts = || {
            let read = daemon.metric("coredns_dns_requests_total", "") - 1.0;
            (read, daemon.metric("nodens_receive_drops_total", ""))
        };
        let whole = until(Duration::from_secs(10), || {
            let (read, drops) = counts();
            read + drops >= 3000.0
        });
        let (read, drops) = counts();
        assert!(whole && drops > 0.0, "{read} read and {drops} dropped of 3,000");
        assert_eq!(read + drops, 3000.0, "{read} read and {drops} dropped");
    });
}
