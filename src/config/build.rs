//! Spec → Config: every value is read, bounded and compared with the others, once.
//!
//! Zones and their upstreams are in [`super::zones`].

use std::net::SocketAddr;
use std::path::PathBuf;

use super::bounds::{self, Bounded};
use super::error::{ConfigError, Fault, Place, Source};
use super::host::{self, Host};
use super::reader::{self, Reader};
use super::spec::{Spec, Table, Value, Written};
use super::{
    Admin, Cache, Config, InterceptMode, Listen, Local, Log, LogFormat, Network, PortRange, Serve,
    StaticRecord, cluster, endpoint, forms, intercept, keys, loops, zones,
};

/// Where admin listens unless told otherwise; node-cache's port, so that dashboards find it.
const ADMIN_LISTEN: &str = "127.0.0.1:9253";

/// The unix socket of admin unless told otherwise.
pub const ADMIN_SOCKET: &str = "/run/nodens/admin.sock";

/// What becomes of conntrack entries of upstream queries.
const TRACKS: [(&str, bool); 2] = [("delete", true), ("keep", false)];

/// Reads the whole configuration; what is wrong is added to `errors` and stands at its default.
pub fn build(spec: &Spec, host: &Host, errors: &mut Vec<ConfigError>) -> Config {
    let reader = &mut Reader { table: &spec.0, errors };
    let listen = read_listen(reader, host);
    let forward = zones::read_zones(reader, host);
    let upstream_mark = reader.integer("upstream_mark", &bounds::UPSTREAM_MARK);
    let upstream_mark = u32::try_from(upstream_mark).unwrap_or_default();
    let intercept = intercept::read(reader, &listen, host);
    if intercept.mode == InterceptMode::None && listen.is_empty() {
        // Nobody could ask us; what is intercepted is served without any address of `listen`.
        let _ = reader.some_list("listen", "address");
    }
    let ours = [&listen[..], &intercept.answered(upstream_mark)].concat();
    refuse_loops(reader, &ours, &forward);
    let cache = read_cache(reader);
    zones::refuse_crossed_ttls(reader, &forward, &cache);
    Config {
        listen,
        allow: read_allow(reader),
        upstream_ports: read_ports(reader, host),
        upstream_mark,
        deletes_tracks: reader
            .choice("upstream_conntrack", &TRACKS, "delete, keep")
            .unwrap_or(true),
        serve: read_serve(reader, host),
        cache,
        forward: forward.into_iter().map(|zone| zone.forward).collect(),
        local: read_local(reader),
        cluster: cluster::read(reader),
        intercept,
        admin: read_admin(reader, host),
        log: read_log(reader),
    }
}

/// The addresses to answer on: those written, or loopback where it exists.
fn read_listen(reader: &mut Reader<'_, '_>, host: &Host) -> Vec<Listen> {
    let Some(items) = reader.list("listen") else {
        let default = |ip| Listen {
            address: SocketAddr::new(ip, endpoint::DNS_PORT),
            device: None,
            required: false,
            is_intercepted: false,
            is_led_to: false,
        };
        return host::LOOPBACK.map(default).into();
    };
    let mut listen: Vec<Listen> = Vec::new();
    let mut places: Vec<&Place> = Vec::new();
    for item in items {
        let read = read_listen_item(item, host);
        let Some(new) = reader.accept(&item.place, read) else { continue };
        match listen.iter().position(|known| known.address == new.address && new.address.port() > 0)
        {
            Some(at) => {
                let first = places[at].to_string();
                let what = format!("the address {}", new.address);
                reader.fail(&item.place, Fault::Duplicate { what, first });
            }
            None => {
                listen.push(new);
                places.push(&item.place);
            }
        }
    }
    listen
}

/// One address, as a text or as a table.
fn read_listen_item(item: &Written, host: &Host) -> Result<Listen, Fault> {
    let address = |text| endpoint::parse_address(text, endpoint::DNS_PORT, &host.interfaces);
    let table = match &item.value {
        Value::Text(text) => {
            let address = address(text)?;
            return Ok(Listen {
                address,
                device: None,
                required: true,
                is_intercepted: false,
                is_led_to: false,
            });
        }
        Value::Table(table) => table,
        other => return Err(reader::wrong_kind(other, "an address, or { address, device }")),
    };
    known_keys(table, &["address", "device", "required"])?;
    let written = table.get("address").ok_or(Fault::Missing { what: "address" })?;
    let device = table.get("device").map(|device| reader::text(&device.value)).transpose()?;
    Ok(Listen {
        address: address(reader::text(&written.value)?)?,
        device: device.map(read_device).transpose()?,
        required: read_required(table)?,
        is_intercepted: false,
        is_led_to: false,
    })
}

/// The key `required` of a table inside a list: a default that may be missing says false.
fn read_required(table: &Table) -> Result<bool, Fault> {
    match table.get("required").map(|required| &required.value) {
        None => Ok(true),
        Some(Value::Switch(required)) => Ok(*required),
        Some(other) => Err(reader::wrong_kind(other, "true or false")),
    }
}

/// A network device's name, as the kernel takes it: 1 to 15 bytes without `/` and blanks.
fn read_device(name: &str) -> Result<String, Fault> {
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    let fault =
        || Fault::NotA { text: name.to_owned(), what: "a network device", example: "\"eth0\"" };
    if valid { Ok(name.to_owned()) } else { Err(fault()) }
}

/// Refuses keys of a table inside a list that are not in `known`.
fn known_keys(table: &Table, known: &[&str]) -> Result<(), Fault> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let suggestion = keys::nearest(key, known.iter().copied()).map(str::to_owned);
            Err(Fault::UnknownKey { key: key.clone(), suggestion })
        }
    }
}

/// The networks that may ask; `None` for the default set.
fn read_allow(reader: &mut Reader<'_, '_>) -> Option<Vec<Network>> {
    let items = reader.some_list("allow", "network")?;
    let mut networks = Vec::new();
    for item in items {
        let read = reader::text(&item.value).and_then(|text| {
            forms::parse_network(text).ok_or_else(|| Fault::NotA {
                text: text.to_owned(),
                what: "a network (no bits may be set behind the prefix)",
                example: "\"10.0.0.0/8\" or \"fd00::/8\"",
            })
        });
        networks.extend(reader.accept(&item.place, read));
    }
    Some(networks)
}

/// The source ports: those written or the kernel's, always without the reserved ones.
fn read_ports(reader: &mut Reader<'_, '_>, host: &Host) -> PortRange {
    let written = reader.value("upstream_ports", |value| {
        let text = reader::text(value)?;
        forms::parse_ports(text).ok_or_else(|| Fault::NotA {
            text: text.to_owned(),
            what: "a range of ports",
            example: "\"32768-60999\"",
        })
    });
    let place = reader.table.get("upstream_ports").map(|written| written.place.clone());
    let (first, last) = written.unwrap_or(host.ports);
    let range = PortRange { first, last, reserved: host.reserved.clone() };
    let place = place
        .unwrap_or_else(|| Place { source: Source::System(host::PORT_RANGE), key: String::new() });
    if let Err(fault) = zones::enough_ports(&range) {
        reader.fail(&place, fault);
    }
    range
}

/// `[serve]`
fn read_serve(reader: &mut Reader<'_, '_>, host: &Host) -> Serve {
    let cores = u64::try_from(host.cores).unwrap_or(u64::MAX);
    let per_core = |bounds: Bounded<u64>| Bounded { default: bounds.default.min(cores), ..bounds };
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    Serve {
        threads: reader.count("serve.threads", &per_core(bounds::THREADS)),
        resolver_threads: reader
            .count("serve.resolver_threads", &per_core(bounds::RESOLVER_THREADS)),
        receive_buffer: bytes(reader.size("serve.receive_buffer", &bounds::RECEIVE_BUFFER)),
        send_buffer: bytes(reader.size("serve.send_buffer", &bounds::SEND_BUFFER)),
        udp_payload: u16::try_from(reader.integer("serve.udp_payload", &bounds::UDP_PAYLOAD))
            .unwrap_or(crate::dns::edns::UDP_PAYLOAD),
        max_in_flight: reader.count("serve.max_in_flight", &bounds::MAX_IN_FLIGHT),
        tcp_connections: reader.count("serve.tcp_connections", &bounds::TCP_CONNECTIONS),
        tcp_connections_per_source: reader
            .count("serve.tcp_connections_per_source", &bounds::TCP_CONNECTIONS_PER_SOURCE),
        tcp_pipeline: reader.count("serve.tcp_pipeline", &bounds::TCP_PIPELINE),
        tcp_idle: reader.duration("serve.tcp_idle", &bounds::TCP_IDLE),
        drain: reader.duration("serve.drain", &bounds::DRAIN),
    }
}

/// `[cache]`
fn read_cache(reader: &mut Reader<'_, '_>) -> Cache {
    let cache = Cache {
        size: reader.size("cache.size", &bounds::CACHE_SIZE),
        min_ttl: reader.duration("cache.min_ttl", &bounds::MIN_TTL),
        max_ttl: reader.duration("cache.max_ttl", &bounds::MAX_TTL),
        max_negative_ttl: reader.duration("cache.max_negative_ttl", &bounds::MAX_NEGATIVE_TTL),
        failure_ttl: reader.duration("cache.failure_ttl", &bounds::FAILURE_TTL),
        stale: reader.duration("cache.stale", &bounds::STALE),
        prefetch: reader.switch("cache.prefetch", true),
    };
    if (1..bounds::CACHE_SIZE_FLOOR).contains(&cache.size) {
        let [written, min, max] =
            [cache.size, bounds::CACHE_SIZE_FLOOR, bounds::CACHE_SIZE.max].map(forms::write_size);
        let min = format!("\"0\" for none, or {min}");
        zones::fail_at(reader, "cache.size", Fault::OutOfBounds { written, min, max });
    }
    if cache.min_ttl > cache.max_ttl {
        zones::fail_at(reader, "cache.min_ttl", Fault::Crossed { other: "max_ttl" });
    }
    cache
}

/// `[local]`
fn read_local(reader: &mut Reader<'_, '_>) -> Local {
    let mut records = Vec::new();
    for item in reader.list("local.records").unwrap_or_default() {
        let read = reader::text(&item.value).and_then(read_record);
        records.extend(reader.accept(&item.place, read));
    }
    let version = reader.value("local.version", |value| match reader::text(value)? {
        text if text.len() <= 255 => Ok(text),
        text => Err(Fault::NotA {
            text: text.to_owned(),
            what: "a text of at most 255 bytes",
            example: "\"nodens\"",
        }),
    });
    Local {
        localhost: reader.switch("local.localhost", true),
        special_use: reader.switch("local.special_use", true),
        private_reverse: reader.switch("local.private_reverse", false),
        records,
        hosts: reader.text("local.hosts").map(PathBuf::from),
        ttl: reader.duration("local.ttl", &bounds::LOCAL_TTL),
        version: version.filter(|text| !text.is_empty()).map(str::to_owned),
    }
}

/// One static record: `name [ttl] [IN] type data`.
fn read_record(line: &str) -> Result<StaticRecord, Fault> {
    crate::dns::text::Record::from_text(line)
        .map(|record| StaticRecord {
            name: record.name,
            ttl: record.ttl.map(|secs| std::time::Duration::from_secs(secs.into())),
            rtype: record.rtype,
            rdata: record.rdata,
        })
        .map_err(|error| Fault::Record(format!("\"{line}\": {error}")))
}

/// `[admin]`
fn read_admin(reader: &mut Reader<'_, '_>, host: &Host) -> Admin {
    let mut listen = Vec::new();
    match reader.list("admin.listen") {
        None => listen.push(ADMIN_LISTEN.parse().expect("the constant is an address")),
        Some(items) => {
            for item in items {
                let read = reader::text(&item.value)
                    .and_then(|text| endpoint::parse_address(text, 9253, &host.interfaces));
                listen.extend(reader.accept(&item.place, read));
            }
        }
    }
    let socket = reader.value("admin.socket", read_socket);
    let (path, socket_required) = socket.unwrap_or((ADMIN_SOCKET, false));
    let socket = Some(path).filter(|path| !path.is_empty()).map(PathBuf::from);
    Admin { listen, socket_required: socket_required && socket.is_some(), socket }
}

/// The unix socket's path, and whether it was asked for: a text, or `{ path, required }`.
fn read_socket(value: &Value) -> Result<(&str, bool), Fault> {
    /// Bytes of `sockaddr_un.sun_path`, the final NUL included (unix(7)).
    const MAX_PATH: usize = 108;
    let (path, required) = match value {
        Value::Table(table) => {
            known_keys(table, &["path", "required"])?;
            let path = table.get("path").ok_or(Fault::Missing { what: "path" })?;
            (reader::text(&path.value)?, read_required(table)?)
        }
        other => (reader::text(other)?, true),
    };
    if path.len() < MAX_PATH && (path.is_empty() || path.starts_with('/')) {
        return Ok((path, required));
    }
    Err(Fault::NotA {
        text: path.to_owned(),
        what: "an absolute path of at most 107 bytes",
        example: "\"/run/nodens/admin.sock\"",
    })
}

/// `[log]`
fn read_log(reader: &mut Reader<'_, '_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        level: reader.value("log.level", read_level).unwrap_or("info").to_owned(),
        format: reader.choice("log.format", &formats, "text, json").unwrap_or(LogFormat::Text),
        queries: reader.float("log.queries", &bounds::LOG_QUERIES),
    }
}

/// A log filter: directives of the form `LEVEL` or `TARGET=LEVEL`, comma separated.
fn read_level(value: &Value) -> Result<&str, Fault> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let text = reader::text(value)?;
    let is_directive = |directive: &str| {
        let level = directive.rsplit('=').next().unwrap_or(directive).trim();
        LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
    };
    if text.split(',').all(is_directive) {
        return Ok(text);
    }
    Err(Fault::NotA {
        text: text.to_owned(),
        what: "a log level",
        example: "\"info\" or \"nodens=debug,hickory=warn\"",
    })
}

/// Refuses upstreams that are one of our own addresses, at the place of the zone's upstreams.
fn refuse_loops(reader: &mut Reader<'_, '_>, listen: &[Listen], forward: &[zones::Zone]) {
    for zone in forward {
        for (upstream, place) in &zone.written {
            if let Some(found) = loops(listen, std::slice::from_ref(upstream)) {
                reader.fail(place, found.into());
            }
        }
    }
}
