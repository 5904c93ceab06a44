//! Config → TOML: the effective configuration, in a form that loads to the same [`Config`].

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::forms::{write_duration, write_network, write_size};
use super::{
    Admin, Cache, Cluster, Config, Forward, Intercept, InterceptMode, Listen, Local, Log,
    LogFormat, PortPolicy, Rewrite, Serve, StaticRecord, UpstreamSource, zones,
};
use crate::dns::name::Name;

/// Keys with their values as TOML; `None` stands for a default that TOML cannot say.
type Values = Vec<(&'static str, Option<String>)>;

impl Config {
    /// Writes every key with its value; a key whose default is no value is written as a comment.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for (head, values) in &self.tables() {
            write_table(&mut out, head, values);
        }
        for zone in &self.forward {
            write_table(&mut out, "[[forward]]", &forward(zone));
        }
        out
    }

    /// The keys outside of `[[forward]]` whose values differ from those of `other`.
    pub fn keys_unlike(&self, other: &Self) -> Vec<&'static str> {
        let values = |config: &Self| config.tables().into_iter().flat_map(|(_, values)| values);
        let pairs = values(self).zip(values(other));
        pairs.filter(|(ours, theirs)| ours != theirs).map(|((key, _), _)| key).collect()
    }

    /// All tables but `[[forward]]`, each with its head.
    fn tables(&self) -> [(&'static str, Values); 8] {
        [
            ("", top(self)),
            ("[serve]", serve(&self.serve)),
            ("[cache]", cache(&self.cache)),
            ("[local]", local(&self.local)),
            ("[cluster]", cluster(&self.cluster)),
            ("[intercept]", intercept(&self.intercept)),
            ("[admin]", admin(&self.admin)),
            ("[log]", log(&self.log)),
        ]
    }
}

/// Writes one table: its head where it has one, then its keys.
fn write_table(out: &mut String, head: &str, values: &Values) {
    let write = |out: &mut String| {
        if !head.is_empty() {
            writeln!(out, "\n{head}")?;
        }
        for (name, value) in values {
            let key = name.rsplit('.').next().unwrap_or(name);
            match value {
                Some(value) => writeln!(out, "{key} = {value}")?,
                None => writeln!(out, "# {key}: {}", default_of(name))?,
            }
        }
        std::fmt::Result::Ok(())
    };
    write(out).expect("writing to a text does not fail");
}

/// What the table of keys says about a key's default.
fn default_of(name: &str) -> &'static str {
    super::keys::find(name).map_or("", |key| key.default)
}

/// A text as TOML.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A list of values that are TOML already.
fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// The keys outside of tables.
fn top(config: &Config) -> Values {
    let ports = &config.upstream_ports;
    let allow = config.allow.as_ref();
    let root = config.forward.iter().find(|forward| forward.zone.is_root());
    let resolv_conf = root.and_then(|root| match &root.upstreams {
        UpstreamSource::ResolvConf(path) => Some(quote(&path.to_string_lossy())),
        UpstreamSource::Fixed(_) => None,
    });
    vec![
        ("listen", Some(list(config.listen.iter().map(listen)))),
        (
            "allow",
            allow.map(|networks| {
                list(networks.iter().map(|network| quote(&write_network(network))))
            }),
        ),
        ("upstream_ports", Some(quote(&format!("{}-{}", ports.first, ports.last)))),
        ("upstream_mark", Some(format!("{:#x}", config.upstream_mark))),
        ("upstream_conntrack", Some(quote(if config.deletes_tracks { "delete" } else { "keep" }))),
        ("resolv_conf", Some(resolv_conf.unwrap_or_else(|| quote(zones::RESOLV_CONF)))),
    ]
}

/// An address to listen on, as a text where that says all.
fn listen(listen: &Listen) -> String {
    let address = quote(&listen.address.to_string());
    if listen.required && listen.device.is_none() {
        return address;
    }
    let mut table = format!("{{ address = {address}");
    if let Some(device) = &listen.device {
        let _ = write!(table, ", device = {}", quote(device));
    }
    if !listen.required {
        table.push_str(", required = false");
    }
    table + " }"
}

/// `[intercept]`
fn intercept(intercept: &Intercept) -> Values {
    let mode = match intercept.mode {
        InterceptMode::Takeover => "takeover",
        InterceptMode::Bind => "bind",
        InterceptMode::None => "none",
    };
    let addresses = intercept.addresses.iter().map(|ip| quote(&ip.to_string()));
    let private = intercept.private.iter().map(|network| quote(&write_network(network)));
    let fallback = intercept.fallback.iter().map(|endpoint| quote(&endpoint.to_string()));
    vec![
        ("intercept.mode", intercept.required.then(|| quote(mode))),
        ("intercept.addresses", intercept.are_written.then(|| list(addresses))),
        ("intercept.private", Some(list(private))),
        ("intercept.fallback", Some(list(fallback))),
    ]
}

/// `[serve]`
fn serve(serve: &Serve) -> Values {
    let size = |bytes: usize| Some(quote(&write_size(u64::try_from(bytes).unwrap_or(u64::MAX))));
    let count = |count: usize| Some(count.to_string());
    vec![
        ("serve.threads", count(serve.threads)),
        ("serve.resolver_threads", count(serve.resolver_threads)),
        ("serve.receive_buffer", size(serve.receive_buffer)),
        ("serve.send_buffer", size(serve.send_buffer)),
        ("serve.udp_payload", count(serve.udp_payload.into())),
        ("serve.max_in_flight", count(serve.max_in_flight)),
        ("serve.tcp_connections", count(serve.tcp_connections)),
        ("serve.tcp_connections_per_source", count(serve.tcp_connections_per_source)),
        ("serve.tcp_pipeline", count(serve.tcp_pipeline)),
        ("serve.tcp_idle", Some(quote(&write_duration(serve.tcp_idle)))),
        ("serve.drain", Some(quote(&write_duration(serve.drain)))),
    ]
}

/// `[cache]`
fn cache(cache: &Cache) -> Values {
    let duration = |span| Some(quote(&write_duration(span)));
    vec![
        ("cache.size", Some(quote(&write_size(cache.size)))),
        ("cache.min_ttl", duration(cache.min_ttl)),
        ("cache.max_ttl", duration(cache.max_ttl)),
        ("cache.max_negative_ttl", duration(cache.max_negative_ttl)),
        ("cache.failure_ttl", duration(cache.failure_ttl)),
        ("cache.stale", duration(cache.stale)),
        ("cache.prefetch", Some(cache.prefetch.to_string())),
    ]
}

/// `[local]`
fn local(local: &Local) -> Values {
    let text = |text: Option<String>| text.map(|text| quote(&text));
    let hosts = local.hosts.as_ref().map(|path| path.to_string_lossy().into_owned());
    vec![
        ("local.localhost", Some(local.localhost.to_string())),
        ("local.special_use", Some(local.special_use.to_string())),
        ("local.private_reverse", Some(local.private_reverse.to_string())),
        ("local.records", Some(list(local.records.iter().map(|record| quote(&line_of(record)))))),
        ("local.hosts", text(hosts)),
        ("local.ttl", Some(quote(&write_duration(local.ttl)))),
        ("local.version", text(local.version.clone())),
    ]
}

/// `[cluster]`
fn cluster(cluster: &Cluster) -> Values {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| quote(&path.to_string_lossy()));
    let names = |names: &[Name]| list(names.iter().map(|name| quote(&name.to_string())));
    let rules = cluster.tenancy.iter().map(|rule| quote(&rule.to_string()));
    vec![
        ("cluster.source", cluster.source.map(|source| quote(source.as_text()))),
        ("cluster.domains", Some(names(&cluster.domains))),
        ("cluster.ttl", Some(quote(&write_duration(cluster.ttl)))),
        ("cluster.pods", Some(quote(cluster.pods.as_text()))),
        ("cluster.kubeconfig", path(&cluster.kubeconfig)),
        ("cluster.folder", path(&cluster.folder)),
        ("cluster.dns_service", Some(quote(&cluster.dns_service.to_string()))),
        ("cluster.search", Some(cluster.search.to_string())),
        ("cluster.node_search", cluster.node_search.as_deref().map(names)),
        ("cluster.tenancy", Some(list(rules))),
        ("cluster.by_namespace", Some(cluster.by_namespace.to_string())),
        ("cluster.node", cluster.node.as_deref().map(quote)),
    ]
}

/// A static record with its data in the generic form, which every type has.
///
/// Source: RFC 3597 §5
fn line_of(record: &StaticRecord) -> String {
    let ttl = record.ttl.map_or_else(String::new, |ttl| format!("{} ", ttl.as_secs()));
    let hex: String = record.rdata.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {ttl}{} \\# {} {hex}", record.name, record.rtype, record.rdata.len())
}

/// `[admin]`
fn admin(admin: &Admin) -> Values {
    let socket = match &admin.socket {
        None => quote(""),
        Some(path) if admin.socket_required => quote(&path.to_string_lossy()),
        Some(path) => {
            format!("{{ path = {}, required = false }}", quote(&path.to_string_lossy()))
        }
    };
    vec![
        (
            "admin.listen",
            Some(list(admin.listen.iter().map(|address| quote(&address.to_string())))),
        ),
        ("admin.socket", Some(socket)),
    ]
}

/// `[log]`
fn log(log: &Log) -> Values {
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    vec![
        ("log.level", Some(quote(&log.level))),
        ("log.format", Some(quote(format))),
        ("log.queries", Some(format!("{:?}", log.queries))),
    ]
}

/// `[[forward]]`
fn forward(forward: &Forward) -> Values {
    let duration = |span| Some(quote(&write_duration(span)));
    let upstreams = match &forward.upstreams {
        UpstreamSource::Fixed(upstreams) => {
            let fixed = upstreams.iter().map(ToString::to_string);
            let sets = forward.endpoints.iter().map(ToString::to_string);
            Some(list(fixed.chain(sets).map(|upstream| quote(&upstream))))
        }
        UpstreamSource::ResolvConf(_) => None,
    };
    let ports = match forward.ports {
        PortPolicy::PerQuery => "per-query",
        PortPolicy::Pooled => "pooled",
    };
    let mut values = vec![
        ("forward.zone", Some(quote(&forward.zone.to_string()))),
        ("forward.upstreams", upstreams),
        ("forward.ports", Some(quote(ports))),
        ("forward.timeout", duration(forward.timeout)),
        ("forward.retransmit_min", duration(forward.retransmit_min)),
        ("forward.retransmit_max", duration(forward.retransmit_max)),
        ("forward.trust_ad", Some(forward.trust_ad.to_string())),
        ("forward.tls_ca", forward.tls_ca.as_ref().map(|path| quote(&path.to_string_lossy()))),
    ];
    values.extend(rewrite(&forward.rewrite));
    values
}

/// The keys of `[[forward]]` that change answers.
fn rewrite(rewrite: &Rewrite) -> Values {
    let duration = |span: Option<Duration>| span.map(|span| quote(&write_duration(span)));
    let allow = rewrite.rebind_allow.iter().map(|name| quote(&name.to_string()));
    vec![
        ("forward.aaaa", Some(quote(rewrite.aaaa.as_text()))),
        ("forward.dns64", rewrite.dns64.as_ref().map(|prefix| quote(&write_network(prefix)))),
        ("forward.min_ttl", duration(rewrite.ttl.min)),
        ("forward.max_ttl", duration(rewrite.ttl.max)),
        ("forward.shuffle", Some(rewrite.shuffle.to_string())),
        ("forward.rebind_protection", Some(rewrite.rebind_protection.to_string())),
        ("forward.rebind_allow", Some(list(allow))),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::error::ConfigErrors;
    use crate::config::host::Host;
    use crate::config::keys::{KEYS, Kind};
    use crate::config::{Flags, Inputs};

    /// Loads a file's text.
    fn load_text(text: &str) -> Result<Config, ConfigErrors> {
        crate::config::load(&Inputs {
            file: Some((std::path::Path::new("n.toml"), text)),
            environment: &[],
            flags: &Flags::default(),
            host: &Host::sample(),
        })
    }

    /// Loads what was written and writes it again.
    fn round(config: &Config) -> Config {
        let text = config.to_toml();
        load_text(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    #[test]
    fn the_effective_configuration_loads_to_the_same_configuration() {
        for text in [
            "",
            "listen = [\"10.0.0.5\", { address = \"[::1]:5300\", device = \"eth0\", required = false }]",
            "allow = [\"10.0.0.0/8\"]\nupstream_ports = \"1000-2000\"\nupstream_mark = 0\nupstream_conntrack = \"keep\"",
            "resolv_conf = \"/run/resolv \\\"x\\\".conf\"\n[[forward]]\nzone = \".\"\ntimeout = \"1s\"",
            "[[forward]]\nzone = \"a\\\\.b.example.org\"\nupstreams = [\"tls://192.0.2.9#dns.example\", \
             \"https://192.0.2.9/q\", \"fe80::1%eth0\"]\nports = \"pooled\"\ntrust_ad = true\ntls_ca = \"/ca\"",
            "[[forward]]\nzone = \".\"\naaaa = \"auto\"\ndns64 = \"2001:db8:64::/48\"\nmin_ttl = \"5s\"\n\
             max_ttl = \"1h\"\nshuffle = true\nrebind_protection = true\nrebind_allow = [\"corp.example.org\", \"b\"]",
            "[[forward]]\nzone = \".\"\naaaa = \"nodata\"\nmax_ttl = \"90s\"",
            "upstreams = [\"192.0.2.1\", \"tls://name:dns.example.org\", \"file:/run/endpoints\"]\n[[forward]]\n\
             zone = \"b\"\ntransport = \"tcp\"\nupstreams = [\"service:kube-system/kube-dns:5353\"]",
            "[local]\nrecords = [\"a TXT \\\"x \\\\\\\"y\\\"\", \"b 5 SRV 1 2 3 c\"]\nhosts = \"/h\"\n\
             version = \"v\"\nttl = \"1500ms\"",
            "[cluster]\nsource = \"files\"\nfolder = \"/m\"\ndomains = [\"a.example\", \"b\"]\nttl = \"0s\"\n\
             pods = \"verified\"\nkubeconfig = \"/k\"\ndns_service = \"dns/core-dns\"\nsearch = true\nby_namespace = true\n\
             node_search = [\"c.example\"]\ntenancy = [\"a: b c\", \"*: a\", \"?: *\"]\nnode = \"n1\"",
            "[admin]\nlisten = []\nsocket = \"\"\n[log]\nlevel = \"a=debug\"\nformat = \"json\"\nqueries = 0.25",
            "[admin]\nsocket = \"/s\"\n[cache]\nsize = \"0\"\nstale = \"0s\"",
        ] {
            let config = load_text(text).expect(text);
            assert_eq!(round(&config), config, "{}", config.to_toml());
        }
    }

    #[test]
    fn every_key_is_written_with_the_default_that_the_table_says() {
        let text = load_text("").expect("valid").to_toml();
        let mut table = String::new();
        let mut written = BTreeSet::new();
        for line in text.lines() {
            let (key, value) = if let Some(head) = line.strip_prefix('[') {
                table = format!("{}.", head.trim_matches(['[', ']']));
                continue;
            } else if let Some((key, value)) = line.split_once(" = ") {
                (key, value)
            } else if let Some((key, value)) = line.trim_start_matches("# ").split_once(": ") {
                (key, value)
            } else {
                continue;
            };
            let name = format!("{table}{key}");
            let known = KEYS.iter().find(|known| known.name == name).expect(&name);
            let is_words = matches!(
                known.name,
                "listen"
                    | "upstream_ports"
                    | "serve.threads"
                    | "serve.resolver_threads"
                    | "admin.socket"
                    | "forward.zone"
            );
            assert!(is_words || known.default == value, "{name} = {value}");
            written.insert(known.name);
        }
        let elsewhere = ["upstreams", "forward.transport"];
        for key in KEYS.iter().filter(|key| key.kind != Kind::Tables) {
            let is_written = written.contains(key.name) || elsewhere.contains(&key.name);
            assert!(is_written, "{} is not written", key.name);
        }
    }
}
