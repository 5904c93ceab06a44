//! Knot DNS as the upstream: zones of its own, truncation by UDP, everything by TCP.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::message::{ask, qtype, rcode};
use super::place::{Place, free_port, until};
use super::process::{Process, command};
use super::wire::Udp;

/// A running knotd on loopback.
#[derive(Debug)]
pub struct Knot {
    pub address: SocketAddr,
    pub process: Process,
    /// Its files: configuration and zones.
    place: Place,
}

impl Knot {
    /// Starts knotd on a free port with the zones of this file.
    pub fn start() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, free_port()).into())
    }

    /// Starts it on `address`.
    pub fn at(address: SocketAddr) -> Self {
        let place = Place::new();
        let mut text = format!(
            "server:\n  listen: {}@{}\n  rundir: {dir}\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\ndatabase:\n  storage: {dir}\n\
             log:\n  - target: stderr\n    any: warning\nzone:\n",
            address.ip(),
            address.port(),
            dir = place.as_path().display()
        );
        for (zone, records) in zones() {
            let file = place.write(&format!("{zone}zone"), &records);
            write!(text, "  - domain: {zone}\n    file: {}\n", file.display()).expect("a string");
        }
        let config = place.write("knot.conf", &text);
        let mut knotd = command("knotd");
        knotd.arg("-c").arg(config);
        let process = Process::start(knotd, &place.path("knot.log"));
        let knot = Self { address, process, place };
        assert!(until(Duration::from_secs(20), || knot.answers()), "{}", knot.process.log());
        knot
    }

    /// Puts a zone's own part in force, behind an SOA with this serial; returns once it is served.
    pub fn rewrite(&self, zone: &str, serial: u32, records: &str) {
        let text = format!(
            "@ 300 SOA ns1.example.org. hostmaster.example.org. {serial} 3600 600 86400 60\n\
             @ 300 NS ns1.example.org.\n{records}"
        );
        self.place.write(&format!("{zone}zone"), &text);
        self.process.signal(libc::SIGHUP);
        let served = || {
            let soa = Udp::to(self.address).exchange(&ask(zone, qtype::SOA));
            soa.data(qtype::SOA).iter().any(|data| data.contains(&format!(" {serial:08x}")))
        };
        assert!(until(Duration::from_secs(20), served), "{}", self.process.log());
    }

    /// Tells whether it serves its zones.
    fn answers(&self) -> bool {
        let (socket, question) = (Udp::to(self.address), ask("www.example.org", qtype::A));
        if socket.0.send(&question.to_wire()).is_err() {
            return false;
        }
        let answer = socket.answer_to(question.id, Duration::from_millis(100));
        answer.is_some_and(|answer| answer.rcode() == rcode::NOERROR && !answer.answers.is_empty())
    }
}

/// How many TXT records make up `big.example.org` (3 kB) and `huge.example.org` (60 kB).
pub const BIG: usize = 30;
pub const HUGE: usize = 230;

/// Zone names (absolute) and their files.
fn zones() -> Vec<(&'static str, String)> {
    let soa = |ns: &str| {
        format!("@ 300 SOA {ns} hostmaster.example.org. 1 3600 600 86400 60\n@ 300 NS {ns}\n")
    };
    let mut org = soa("ns1.example.org.");
    org.push_str(ORG);
    for (name, count, length) in [("big", BIG, 90), ("huge", HUGE, 245)] {
        for number in 0..count {
            let filler = "x".repeat(length);
            writeln!(org, "{name} 300 TXT \"{number:05}{filler}\"").expect("a string");
        }
    }
    for number in 1..=20 {
        writeln!(org, "many 300 A 198.18.5.{number}").expect("a string");
    }
    let (mut reverse4, mut reverse6) = (soa("ns1.example.org."), soa("ns1.example.org."));
    for (number, name) in [(1, "www"), (4, "v4"), (53, "ns1"), (200, "any.wild")] {
        writeln!(reverse4, "{number} 300 PTR {name}.example.org.").expect("a string");
    }
    let zeros = "0.".repeat(23);
    for (number, name) in [(1, "www"), (6, "v6")] {
        writeln!(reverse6, "{number}.{zeros} 300 PTR {name}.example.org.").expect("a string");
    }
    let reverse6 = reverse6.replace(". 300 PTR", " 300 PTR");
    let net = soa("ns1.example.org.") + "www 300 A 198.51.100.1\nwww 300 AAAA 2001:db8:1::1\n";
    vec![
        (".", soa("ns1.example.org.")),
        ("example.org.", org),
        ("example.net.", net),
        ("2.0.192.in-addr.arpa.", reverse4),
        ("8.b.d.0.1.0.0.2.ip6.arpa.", reverse6),
    ]
}

/// `example.org` without its SOA, its NS and its large RRsets.
const ORG: &str = r#"
@ 300 MX 10 mail
@ 300 MX 20 mail2
@ 300 A 192.0.2.2
@ 300 TXT "v=spf1 -all"
@ 300 CAA 0 issue "ca.example.org"
ns1 300 A 192.0.2.53
ns1 300 AAAA 2001:db8::53
mail 300 A 192.0.2.25
mail2 300 A 192.0.2.26
www 300 A 192.0.2.1
www 300 AAAA 2001:db8::1
v4 300 A 192.0.2.4
v6 300 AAAA 2001:db8::6
MiXeD 300 A 192.0.2.11
short 2 A 192.0.2.12
zero 0 A 192.0.2.10
long 1209600 A 192.0.2.14
txt 300 TXT "one" "two" "three and a longer one"
_http._tcp 300 SRV 0 5 80 www
_http._tcp 300 SRV 10 5 8080 v4
_dns._udp 300 SRV 0 0 53 ns1
alias 300 CNAME www
chain1 300 CNAME chain2
chain2 60 CNAME chain3
chain3 300 CNAME www
dangling 300 CNAME nothing
outward 300 CNAME www.example.net.
leaf.empty 300 A 192.0.2.15
*.wild 300 A 192.0.2.200
*.wild 300 AAAA 2001:db8::200
*.wild 300 TXT "wild"
old 300 DNAME wild
naptr 300 NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@example.org!" .
https 300 HTTPS 1 . alpn=h2
sshfp 300 SSHFP 4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789
_443._tcp 300 TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
loc 300 LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
odd 300 TYPE65280 \# 4 0a000001
hinfo 300 HINFO "cpu" "os"
"#;
