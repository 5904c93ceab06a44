//! Real upstreams on hosts of their own: packets are lost, servers hang, die and return, connections end unseen.

use std::collections::HashSet;
use std::time::Duration;

use crate::harness::node::{Host, nft, say, sh};
use crate::harness::wire::PATIENCE;
use crate::harness::{
    Answer, Daemon, Knot, Setup, Udp, ask, namespace, needs, qtype, rcode, until, wire,
};

/// How long a change of health may take on a busy machine; alone it is below two seconds.
const CHANGE: Duration = Duration::from_secs(15);

/// Loses what is counted on its way into a host.
const LOSS: &str = "
table inet lossy {
  counter lost { }
  chain in { type filter hook input priority 0;
    udp dport 53 numgen random mod 100 < 30 counter name lost drop
    udp sport 53 numgen random mod 100 < 30 counter name lost drop
  }
}
";

/// Loses all of a host's TCP, its resets too.
const DEAF: &str = "
table inet deaf {
  chain in { type filter hook input priority 0;
    ip saddr { 198.18.1.1, 198.18.1.9 } meta l4proto tcp drop
  }
}
";

/// A host with a knot, at the end of a cable of its own.
struct Far {
    address: String,
    host: Host,
    knot: Option<Knot>,
}

impl Far {
    /// Makes `count` of them: 198.18.1.1, 198.18.2.1 and so on.
    fn some(count: usize) -> Vec<Self> {
        (1..=count)
            .map(|n| {
                let host = Host::new();
                sh(&format!(
                    "ip link add up{n} type veth peer name far{n} netns {}
                     ip address add 198.18.{n}.9/24 dev up{n}
                     ip link set up{n} up",
                    host.pid()
                ));
                host.visit(|| {
                    sh(&format!(
                        "ip link set lo up
                         ip address add 198.18.{n}.1/24 dev far{n}
                         ip link set far{n} up"
                    ));
                });
                let mut far = Self { address: format!("198.18.{n}.1:53"), host, knot: None };
                far.start();
                far
            })
            .collect()
    }

    /// Starts its knot.
    fn start(&mut self) {
        let address = self.address.parse().expect("an address");
        self.knot = Some(self.host.visit(|| Knot::at(address)));
    }

    /// Sends its knot a signal; where that is to stop it, waits until it stands still: threads of it may go on for a
    /// moment, and answer.
    fn signal(&self, signal: libc::c_int) {
        let process = &self.knot.as_ref().expect("it was started").process;
        process.signal(signal);
        let stands = || {
            let tasks =
                std::fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it lives");
            let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat"));
            tasks.flatten().filter_map(|task| stat(task).ok()).all(|stat| stat.contains(") T "))
        };
        assert!(signal != libc::SIGSTOP || until(CHANGE, stands), "it goes on");
    }

    /// Waits until the daemon takes it for down, or no longer.
    fn await_down(&self, daemon: &Daemon, down: bool) {
        let is_down = || daemon.metric("nodens_upstream_down", &self.address) == 1.0;
        assert!(until(CHANGE, || is_down() == down), "{} {down}: {}", self.address, daemon.log());
    }

    /// How many of its responses were accepted.
    fn responses(&self, daemon: &Daemon) -> f64 {
        daemon.metric("nodens_upstream_responses_total", &self.address)
    }
}

/// A daemon in front of all of them, asked as `scheme` says.
fn before(fars: &[Far], scheme: &str) -> Daemon {
    let form = |far: &Far| format!("{scheme}{}", far.address);
    let setup = Setup::towards(form(&fars[0]));
    fars[1..].iter().fold(setup, |setup, far| setup.and(form(far))).start()
}

/// Asks for `count` names that nobody asked before, 20 at a time; each must be answered.
fn ask_unique(daemon: &Daemon, tag: &str, count: u16) {
    let socket = Udp::to(daemon.address());
    let (mut next, mut owed) = (0, HashSet::new());
    while next < count || !owed.is_empty() {
        while next < count && owed.len() < 20 {
            let mut ask = ask(&format!("{tag}{next}.wild.example.org"), qtype::A);
            ask.id = next;
            socket.send(&ask.to_wire());
            owed.insert(next);
            next += 1;
        }
        let wire = socket.receive(PATIENCE).unwrap_or_else(|| panic!("{tag}: {owed:?} lost"));
        let answer = Answer::read(&wire);
        assert_eq!(answer.data(qtype::A), ["192.0.2.200"], "{tag}: {answer:?}");
        assert!(owed.remove(&answer.id), "{tag}: an answer that nobody is owed");
    }
}

#[test]
fn three_knots_that_lose_a_third_of_all_packets_each_way_answer_every_query() {
    needs!("knotd", "ip", "nft", "unshare");
    namespace::inside(|| {
        let fars = Far::some(3);
        let daemon = before(&fars, "");
        nft(LOSS);
        fars.iter().for_each(|far| far.host.visit(|| nft(LOSS)));
        ask_unique(&daemon, "lossy", 600);
        let lost = || {
            let text = say("nft", &["list", "counter", "inet", "lossy", "lost"]);
            let count = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
            count.and_then(|count| count.parse::<u32>().ok()).expect("a count")
        };
        let (back, there) = (lost(), fars.iter().map(|far| far.host.visit(lost)).sum::<u32>());
        assert!(back > 120 && there > 120, "{there} lost there, {back} on the way back");
        let sum = |name| daemon.metric(name, "");
        let again = sum("nodens_upstream_retries_total") + sum("nodens_upstream_hedges_total");
        assert!(again > 240.0, "{again} sent again");
        for far in &fars {
            assert!(far.responses(&daemon) > 0.0, "{} was not asked", far.address);
        }
    });
}

#[test]
fn knots_that_hang_die_and_return_cost_no_query_and_stale_answers_bridge_their_absence() {
    needs!("knotd", "ip", "unshare");
    namespace::inside(|| {
        let mut fars = Far::some(2);
        let daemon = before(&fars, "");
        let short = ask("short.example.org", qtype::A);
        assert_eq!(wire::udp(daemon.address(), &short).data(qtype::A), ["192.0.2.12"]);
        ask_unique(&daemon, "well", 50);

        fars[0].signal(libc::SIGSTOP);
        ask_unique(&daemon, "hangs", 300);
        fars[0].await_down(&daemon, true);
        fars[0].signal(libc::SIGCONT);
        fars[0].await_down(&daemon, false);

        fars[1].knot = None;
        ask_unique(&daemon, "dies", 300);
        fars[1].await_down(&daemon, true);

        fars[0].signal(libc::SIGSTOP);
        let failed = wire::udp(daemon.address(), &ask("new.wild.example.org", qtype::A));
        assert_eq!(failed.rcode(), rcode::SERVFAIL, "nobody is there");
        fars[0].await_down(&daemon, true);
        let stale = wire::udp(daemon.address(), &short);
        let record = stale.answers.first().expect("what was known is told");
        assert_eq!((stale.rcode(), record.ttl), (rcode::NOERROR, 30), "stale");

        fars[0].signal(libc::SIGCONT);
        fars[1].start();
        for far in &fars {
            far.await_down(&daemon, false);
            let before = far.responses(&daemon);
            let asked = || {
                ask_unique(&daemon, &format!("back{}", rand::random::<u32>()), 20);
                far.responses(&daemon) > before
            };
            assert!(until(CHANGE, asked), "{} is not asked any more", far.address);
        }
    });
}

#[test]
fn a_connection_whose_other_end_vanished_unseen_costs_no_query() {
    needs!("knotd", "ip", "nft", "unshare");
    namespace::inside(|| {
        let mut fars = Far::some(2);
        let daemon = before(&fars, "tcp://");
        let both = || fars.iter().all(|far| far.responses(&daemon) > 1.0);
        let asked = || {
            ask_unique(&daemon, &format!("well{}", rand::random::<u32>()), 20);
            both()
        };
        assert!(until(CHANGE, asked), "both have a connection");
        // Neither the end of the old server nor what the new one says of the old connection gets through.
        nft(DEAF);
        fars[0].host.visit(|| nft(DEAF));
        fars[0].knot = None;
        ask_unique(&daemon, "gone", 200);
        sh("nft delete table inet deaf");
        fars[0].host.visit(|| sh("nft delete table inet deaf"));
        fars[0].start();
        let before = fars[0].responses(&daemon);
        let asked = || {
            ask_unique(&daemon, &format!("back{}", rand::random::<u32>()), 20);
            fars[0].responses(&daemon) > before
        };
        assert!(until(CHANGE, asked), "not asked any more: {}", daemon.log());
    });
}
