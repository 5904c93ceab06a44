//! `nodens lookup`

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::{ConfigFile, Failure, print};
use crate::config::endpoint::{self, DNS_PORT};
use crate::config::error::Fault;
use crate::config::forms;
use crate::config::host::Host;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::text::reverse_name;
use crate::stub::reply::Reply;
use crate::stub::{self, Answer, Ask, Carrier};

/// Ask one query and show who answered what, how fast, and why
#[derive(Args, Debug)]
#[command(
    long_about = "Ask one query and show who answered what, how fast, and why.\n\n\
        The query goes to the running daemon (the first `listen` address of the configuration) or to any \
        server. Extended DNS errors (RFC 8914) are shown with their text. The exit code is 0 when any response \
        came, NXDOMAIN and SERVFAIL included, and 1 when none did.",
    after_help = "Examples:\n  \
        nodens lookup example.org\n  \
        nodens lookup example.org AAAA --server 192.0.2.1\n  \
        nodens lookup 2001:db8::1            (its reverse name, PTR)\n  \
        nodens lookup _http._tcp.example.org SRV --tcp"
)]
pub(super) struct Lookup {
    /// A name, always absolute; an IP address stands for its reverse name
    name: String,
    /// Record type: A, AAAA, PTR, SRV, TXT, TYPE65 ... [default: A; PTR for an IP address]
    #[arg(value_name = "TYPE", value_parser = read_qtype)]
    qtype: Option<Qtype>,
    /// Server to ask [default: the daemon's first listen address]
    #[arg(long, short, value_name = "ADDR[:PORT]")]
    server: Option<String>,
    /// Ask by TCP at once, not only after a truncated response
    #[arg(long)]
    tcp: bool,
    /// Set the DO bit: ask for DNSSEC records
    #[arg(long)]
    dnssec: bool,
    /// Patience for each try: 500ms, 5s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = read_timeout)]
    timeout: Duration,
    /// How often the query is sent
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
    #[command(flatten)]
    file: ConfigFile,
}

/// Reads a record type.
fn read_qtype(text: &str) -> Result<Qtype, String> {
    text.parse().map_err(|error: crate::dns::text::TextError| error.to_string())
}

/// Reads a duration above zero.
pub(super) fn read_timeout(text: &str) -> Result<Duration, String> {
    let duration = forms::parse_duration(text).filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "write e.g. 500ms or 5s".to_owned())
}

impl Lookup {
    /// Asks and prints.
    pub(super) fn run(self) -> Result<(), Failure> {
        let server = self.server()?;
        let answer = stub::ask(&Ask {
            server,
            query: self.query()?,
            carrier: if self.tcp { Carrier::Tcp } else { Carrier::Udp },
            timeout: self.timeout,
            tries: self.tries,
        })?;
        let reply = Reply::from_wire(&answer.wire)?;
        print(&(headline(server, &answer, &reply) + &reply.to_string()))
    }

    /// The question that the arguments ask.
    fn query(&self) -> Result<Query, Failure> {
        let (qname, default) = match self.name.parse::<IpAddr>() {
            Ok(address) => (reverse_name(address), Qtype::PTR),
            Err(_) => (read_name(&self.name)?, Qtype::A),
        };
        let mut query = Query::new(qname, self.qtype.unwrap_or(default));
        query.dnssec_ok = self.dnssec;
        Ok(query)
    }

    /// The server that was named, or the daemon of the configuration.
    fn server(&self) -> Result<SocketAddr, Failure> {
        if let Some(text) = &self.server {
            return endpoint::parse_address(text, DNS_PORT, &Host::read().interfaces)
                .map_err(|fault| Failure::Argument { flag: "--server:", fault: fault.into() });
        }
        let config = self.file.load()?;
        let fixed = config.listen.iter().map(|listen| listen.address).find(|at| at.port() > 0);
        fixed.map(reachable).ok_or(Failure::NoServer)
    }
}

/// Reads a domain name.
fn read_name(text: &str) -> Result<Name, Failure> {
    Name::from_text(text).map_err(|_| {
        let (what, example) = ("a domain name", "example.org");
        let fault = Fault::NotA { text: text.to_owned(), what, example };
        Failure::Argument { flag: "NAME:", fault: fault.into() }
    })
}

/// A listen address as one that can be asked: a wildcard is reached by loopback.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(v6) if v6.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

/// `NOERROR from 127.0.0.1:53 by UDP in 0.42 ms (rd ra)`
fn headline(server: SocketAddr, answer: &Answer, reply: &Reply) -> String {
    let carrier = match answer.carrier {
        Carrier::Udp => "UDP",
        Carrier::Tcp => "TCP",
    };
    let millis = answer.took.as_secs_f64() * 1000.0;
    let mut out = format!(
        "{} from {server} by {carrier} in {millis:.2} ms ({})",
        reply.rcode,
        reply.flags().join(" ")
    );
    if answer.tries > 1 {
        // Writing to a text does not fail.
        let _ = write!(out, ", try {}", answer.tries);
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_is_asked_by_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:53", "127.0.0.1:53"),
            ("[::]:5300", "[::1]:5300"),
            ("192.0.2.1:53", "192.0.2.1:53"),
        ] {
            let listen = listen.parse().expect("an address");
            assert_eq!(reachable(listen).to_string(), asked);
        }
    }
}
