//! Looks at the node's IPv6 routes now and then, for the zones that want to know.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Aaaa, Config};
use crate::resolve::Resolver;
use crate::resolve::reach::{Reach, is_route};

/// The kernel's IPv6 routes; not there without IPv6.
const ROUTES: &str = "/proc/net/ipv6_route";

/// How often the routes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks at the routes and notes what they say, if a zone of `config` wants to know.
pub fn look(config: &Config, reach: &Reach) {
    if config.forward.iter().any(|zone| zone.rewrite.aaaa == Aaaa::Auto) {
        note(reach);
    }
}

/// Looks again for ever, while a zone of the routes in force wants to know.
pub async fn watch(resolver: Arc<Resolver>, reach: Arc<Reach>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let routes = resolver.routes();
        if routes.zones().any(|zone| zone.rewrite.settings().aaaa == Aaaa::Auto) {
            let had_ipv6 = reach.has_ipv6();
            note(&reach);
            if had_ipv6 && !reach.has_ipv6() {
                resolver.forget_ipv6();
            }
        }
    }
}

/// Notes what the routes say, and logs it where it is news.
fn note(reach: &Reach) {
    let has_ipv6 = match File::open(ROUTES) {
        Ok(file) => has_route(BufReader::new(file)),
        // Whoever hides the file from us has not said that there is no IPv6.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    if reach.set_node(has_ipv6) {
        tracing::info!(has_ipv6, "IPv6 routes of the node changed, as `aaaa = \"auto\"` sees them");
    }
}

/// Tells whether any line is a route to other nodes; reads no further than the first.
fn has_route(lines: impl BufRead) -> bool {
    lines.lines().map_while(Result::ok).any(|line| is_route(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_route_among_others_is_enough() {
        let zero = "0".repeat(32);
        let line = |flags, interface| {
            format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {interface}\n")
        };
        let (refusing, default) = (line("00200200", "lo"), line("00000003", "eth0"));
        assert!(!has_route(refusing.as_bytes()) && !has_route(&b""[..]));
        assert!(has_route(format!("{refusing}{default}{refusing}").as_bytes()));
    }
}
