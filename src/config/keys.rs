//! The table of every key. The spec is checked against it, the documentation too.

/// What a key's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text; sizes and durations are texts with a unit.
    Text,
    Integer,
    Float,
    Switch,
    /// A list of texts; comma separated in the environment.
    List,
    /// `[[table]]`, once per element; its own keys follow as `table.key`.
    Tables,
}

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted: `cache.size` is `size` in `[cache]` and `NODENS_CACHE__SIZE`.
    pub name: &'static str,
    pub kind: Kind,
    /// As `nodens check-config` writes it; words where it depends on the machine.
    pub default: &'static str,
    /// One line.
    pub doc: &'static str,
}

/// Shortens the table below.
const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, doc }
}

/// Every key, in the order in which `check-config` writes them.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("listen", Kind::List, "127.0.0.1:53 and [::1]:53 where they exist", "addresses to answer on: \"ADDR[:PORT]\" or { address, device, required }; [] where only what is intercepted is served"),
    key("allow", Kind::List, "loopback, link-local, private, ULA, 100.64/10, on-link prefixes", "networks whose queries are answered; others are REFUSED. Unless it is written, whoever asks an intercepted address is answered"),
    key("upstream_ports", Kind::Text, "net.ipv4.ip_local_port_range", "source ports of upstream queries, \"first-last\"; net.ipv4.ip_local_reserved_ports are always left out"),
    key("upstream_mark", Kind::Integer, "0x306e", "SO_MARK of upstream sockets where permitted; 0 sets none"),
    key("upstream_conntrack", Kind::Text, "\"delete\"", "conntrack entries of upstream queries by UDP: delete them behind each query, where permitted, or keep them"),
    key("upstreams", Kind::List, "the nameservers of resolv_conf", "upstreams of the zone \".\": ADDR[:PORT], tcp://, tls://ADDR#NAME, https://ADDR/PATH#NAME; sets that come and go: service:NAMESPACE/NAME, name:HOST, file:PATH, each with [:PORT]"),
    key("resolv_conf", Kind::Text, "\"/etc/resolv.conf\"", "whose nameserver lines are the upstreams of \".\" when none are written; re-read when it changes"),
    key("serve.threads", Kind::Integer, "2, or 1 on one core", "threads that answer UDP"),
    key("serve.resolver_threads", Kind::Integer, "2, or 1 on one core", "workers for misses, TCP and upstreams"),
    key("serve.receive_buffer", Kind::Text, "\"4MiB\"", "SO_RCVBUF of each UDP socket"),
    key("serve.send_buffer", Kind::Text, "\"1MiB\"", "SO_SNDBUF of each UDP socket"),
    key("serve.udp_payload", Kind::Integer, "1232", "largest UDP response in bytes"),
    key("serve.max_in_flight", Kind::Integer, "4096", "queries being resolved at one time, shared fairly by sources; more wait for up to 4 s (UDP) or are shed"),
    key("serve.tcp_connections", Kind::Integer, "4096", "TCP connections at one time"),
    key("serve.tcp_connections_per_source", Kind::Integer, "256", "TCP connections of one source address"),
    key("serve.tcp_pipeline", Kind::Integer, "64", "queries of one TCP connection worked on at one time"),
    key("serve.tcp_idle", Kind::Text, "\"30s\"", "an idle TCP connection is closed after this long"),
    key("serve.drain", Kind::Text, "\"5s\"", "how long SIGTERM waits for responses that are owed"),
    key("cache.size", Kind::Text, "\"64MiB\"", "every byte that the cache owns, overhead counted; \"0\" turns it off"),
    key("cache.min_ttl", Kind::Text, "\"0s\"", "TTLs are raised to this, those of NXDOMAIN and NODATA never"),
    key("cache.max_ttl", Kind::Text, "\"7d\"", "TTLs are lowered to this"),
    key("cache.max_negative_ttl", Kind::Text, "\"1h\"", "lifetimes of NXDOMAIN and NODATA are lowered to this"),
    key("cache.failure_ttl", Kind::Text, "\"1s\"", "how long a resolution failure is remembered"),
    key("cache.stale", Kind::Text, "\"1d\"", "how long past its lifetime an entry may be served when upstreams fail; \"0s\" turns it off"),
    key("cache.prefetch", Kind::Switch, "true", "renew popular names near the end of their life"),
    key("forward", Kind::Tables, "the zone \".\"", "forward zones; the longest suffix wins"),
    key("forward.zone", Kind::Text, "must be written", "names at and below this one are forwarded here"),
    key("forward.upstreams", Kind::List, "must be written; for \".\" the nameservers of resolv_conf", "as the key upstreams"),
    key("forward.transport", Kind::Text, "\"udp\"", "of upstreams written without scheme: udp, tcp, tls, https"),
    key("forward.ports", Kind::Text, "\"per-query\"", "source ports: per-query (a fresh one each time) or pooled (a rotated set)"),
    key("forward.timeout", Kind::Text, "\"4500ms\"", "total time for one query, all attempts together"),
    key("forward.retransmit_min", Kind::Text, "\"20ms\"", "floor of the wait before the first retransmission"),
    key("forward.retransmit_max", Kind::Text, "\"400ms\"", "ceiling of the wait before the first retransmission"),
    key("forward.trust_ad", Kind::Switch, "false", "pass the upstream's AD bit on; only for a trusted path"),
    key("forward.tls_ca", Kind::Text, "Mozilla's roots, built in", "PEM file of the only roots to trust for tls and https (read again when it changes), or \"system\" for the roots of the system"),
    key("forward.aaaa", Kind::Text, "\"forward\"", "AAAA queries: forward; nodata answers them NODATA without asking; auto does so while the node has no IPv6 route and the cluster no IPv6 address"),
    key("forward.dns64", Kind::Text, "none", "prefix in which AAAA answers are made of A answers where there are none (RFC 6147), \"64:ff9b::/96\" or another of 32 to 96 bits"),
    key("forward.min_ttl", Kind::Text, "that of cache.min_ttl", "TTLs are raised to this, those of NXDOMAIN and NODATA never"),
    key("forward.max_ttl", Kind::Text, "that of cache.max_ttl", "TTLs are lowered to this"),
    key("forward.shuffle", Kind::Switch, "false", "spread load: each response begins its A or AAAA records at another one"),
    key("forward.rebind_protection", Kind::Switch, "false", "withhold addresses that are private, loopback, link-local, unspecified or the like, and service records that hint at such; with none left the answer is NODATA and says so"),
    key("forward.rebind_allow", Kind::List, "[]", "names at and below these may have such addresses"),
    key("local.localhost", Kind::Switch, "true", "answer localhost and the loopback reverse names"),
    key("local.special_use", Kind::Switch, "true", "NXDOMAIN for invalid, test, onion, home.arpa and the like"),
    key("local.private_reverse", Kind::Switch, "false", "NXDOMAIN for reverse names of private addresses, instead of forwarding them"),
    key("local.records", Kind::List, "[]", "static records: \"db.example.org 300 A 192.0.2.1\", the TTL may be left out"),
    key("local.hosts", Kind::Text, "none", "a file like /etc/hosts, served forward and reverse; re-read when it changes"),
    key("local.ttl", Kind::Text, "\"1m\"", "TTL of the hosts file and of static records without one"),
    key("local.version", Kind::Text, "refused", "text for version.bind CH TXT"),
    key("cluster.source", Kind::Text, "none", "where the cluster zone comes from: watch (the API server), files (a folder), forward (forwarded; the API server's events clear the cache)"),
    key("cluster.domains", Kind::List, "[\"cluster.local.\"]", "cluster domains; reverse names lead into the first"),
    key("cluster.ttl", Kind::Text, "\"5s\"", "TTL of the cluster zone's records; it does not age"),
    key("cluster.pods", Kind::Text, "\"disabled\"", "names of pods by address: disabled, insecure (any address in a namespace that exists) or verified (needs a watch of all pods)"),
    key("cluster.kubeconfig", Kind::Text, "the pod's service account", "how to reach the API server from outside the cluster"),
    key("cluster.folder", Kind::Text, "none", "Kubernetes manifests (*.yaml, *.yml, *.json) for files; read again when they change"),
    key("cluster.dns_service", Kind::Text, "\"kube-system/kube-dns\"", "the cluster DNS, NAMESPACE/NAME: the zone's name server"),
    key("cluster.search", Kind::Switch, "false", "answer what a pod's search list finds further down at once, as a CNAME; needs to know the node's pods"),
    key("cluster.node_search", Kind::List, "the search line of resolv_conf, at start", "search domains that pods have from their node, behind the cluster's"),
    key("cluster.tenancy", Kind::List, "[]", "which namespaces' names pods see besides their own: \"FROM: NAMESPACE NAMESPACE\" or \"FROM: *\"; FROM is a namespace, * (those without a line; unless told otherwise they see no others) or ? (who is no known pod; sees all unless told otherwise)"),
    key("cluster.by_namespace", Kind::Switch, "false", "count queries by the asking pod's namespace (nodens_cluster_queries_total); needs to know the node's pods"),
    key("cluster.node", Kind::Text, "none", "this node's name: its pods are watched"),
    key("intercept.mode", Kind::Text, "\"takeover\" where addresses are written, else \"none\"", "takeover (queries to other addresses are brought to us by a table that dies with us; needs CAP_NET_ADMIN), bind (the addresses are this host's own while we run, and stay after a SIGKILL) or none"),
    key("intercept.addresses", Kind::List, "[\"169.254.20.10\"] where takeover is written", "what stub resolvers ask, port 53; none of them may stand in listen"),
    key("intercept.private", Kind::List, "[\"169.254.20.16/28\", \"fd6e:6f64:656e::/120\"]", "where each instance takes one private address per asked one from"),
    key("intercept.fallback", Kind::List, "[]", "cluster DNS endpoints ADDR[:PORT] that 169.254.20.10 leads to while nobody intercepts it"),
    key("admin.listen", Kind::List, "[\"127.0.0.1:9253\"]", "HTTP: /metrics, /livez, /readyz and more; [] turns it off"),
    key("admin.socket", Kind::Text, "\"/run/nodens/admin.sock\", where it can be made", "the same on a unix socket, for nodens probe and nodens cache; \"\" turns it off"),
    key("log.level", Kind::Text, "\"info\"", "a level, or filters: \"nodens=debug,hickory=warn\""),
    key("log.format", Kind::Text, "\"text\"", "text or json"),
    key("log.queries", Kind::Float, "0.0", "share of queries that are logged, 0.0 to 1.0"),
];

/// The entry of a dotted name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Tells whether `name` is a table that keys stand in.
pub fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key or table that was probably meant by `name`; `None` when nothing is near.
///
/// A key of the same last part in another table counts as near: `size` means `cache.size`.
pub fn suggest(name: &str) -> Option<&'static str> {
    let tables = KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(table, _)| table);
    let names = KEYS.iter().map(|key| key.name).chain(tables);
    let last = |name: &'static str| name.rsplit_once('.').map(|(_, last)| last);
    nearest(name, names)
        .or_else(|| KEYS.iter().map(|key| key.name).find(|known| last(known) == Some(name)))
}

/// The nearest of `known`, when it is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Similarity (1 is equality) from which a typing error is likelier than another word.
    const NEAR: f64 = 0.7;
    known
        .map(|known| (strsim::normalized_damerau_levenshtein(known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score >= NEAR)
        .map(|(_, known)| known)
}

/// The variable that sets the key `name`.
pub fn variable(name: &str) -> String {
    format!("NODENS_{}", name.replace('.', "__").to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised_and_other_words_are_not() {
        for (name, meant) in [
            ("upstream", Some("upstreams")),
            ("cache.siez", Some("cache.size")),
            ("chache.size", Some("cache.size")),
            ("size", Some("cache.size")),
            ("cahce", Some("cache")),
            ("forwards", Some("forward")),
            ("serve.tcp_idel", Some("serve.tcp_idle")),
            ("cluter", Some("cluster")),
            ("quota", None),
            ("", None),
        ] {
            assert_eq!(suggest(name), meant, "{name}");
        }
    }

    #[test]
    fn names_are_unique_and_documented_in_one_line() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS.iter().skip(index + 1).all(|other| other.name != key.name));
            assert!(!key.doc.is_empty() && !key.default.is_empty() && !key.doc.contains('\n'));
        }
        assert_eq!(variable("cache.size"), "NODENS_CACHE__SIZE");
    }
}
