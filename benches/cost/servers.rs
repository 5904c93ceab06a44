//! How each server is configured: all of them forward everything to one knot and keep 64 MiB or so.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::load;
use super::process::{self, Place};
use super::server::{Cores, Server, free_address};

/// The upstream: knot, authoritative for `example.org` with a wildcard, TTL one hour.
pub fn knot(place: &Place) -> io::Result<Server> {
    let address = free_address()?;
    let zone = "@ 3600 SOA ns host 1 3600 600 86400 60\n@ 3600 NS ns\n@ 3600 A 192.0.2.1\n\
                ns 3600 A 192.0.2.53\n*.hit 3600 A 192.0.2.2\n*.miss 3600 A 192.0.2.3\n";
    let zone = place.write("example.org.zone", zone)?;
    let text = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  rundir: {dir}\n  udp-workers: 1\n  \
         tcp-workers: 1\n  background-workers: 1\ndatabase:\n  storage: {dir}\n\
         log:\n  - target: stderr\n    any: error\n\
         zone:\n  - domain: example.org.\n    file: {zone}\n",
        port = address.port(),
        dir = place.path().display(),
        zone = zone.display(),
    );
    let mut command = Command::new("knotd");
    command.arg("-c").arg(place.write("knot.conf", &text)?);
    let knot = Server::start("knot", &command, address, Cores::Others)?;
    // Its worker has bound itself to the first core, where it would interrupt what is measured.
    knot.bind_threads(Cores::Others)?;
    Ok(knot)
}

/// The measure: this program as the echo.
pub fn echo() -> io::Result<Server> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--echo").arg(address.port().to_string());
    Server::start("echo", &command, address, Cores::First)
}

/// The daemon with a policy of source ports, and its admin address.
pub fn nodens(
    place: &Place,
    upstream: SocketAddr,
    ports: &str,
) -> io::Result<(Server, SocketAddr)> {
    let (address, admin) = (free_address()?, free_address()?);
    place.write("services.yaml", &load::services())?;
    let folder = place.path();
    let text = format!(
        "listen = [\"{address}\"]\n\n\
         [[forward]]\nzone = \".\"\nupstreams = [\"{upstream}\"]\nports = \"{ports}\"\n\n\
         [cluster]\nsource = \"files\"\nfolder = {folder:?}\ndomains = [\"k8s.example\"]\n\n\
         [admin]\nlisten = [\"{admin}\"]\nsocket = \"\"\n\n[log]\nlevel = \"error\"\n"
    );
    let mut command = process::nodens();
    command.args(["run", "--config"]).arg(place.write(&format!("nodens-{ports}.toml"), &text)?);
    Ok((Server::start("nodens", &command, address, Cores::First)?, admin))
}

/// node-cache's engine, which `benches/upstreams/run` builds.
const NODE_CACHE: &str = "node-cache";

/// Its program, where the environment names one.
fn node_cache_program() -> Option<PathBuf> {
    std::env::var_os("NODE_CACHE").map(PathBuf::from).filter(|path| path.is_file())
}

/// The peers that are installed, each started when its turn comes.
pub fn peers() -> Vec<Peer> {
    let all: [Peer; 4] = [
        ("unbound", unbound),
        ("dnsmasq", dnsmasq),
        ("dnsdist", dnsdist),
        (NODE_CACHE, node_cache),
    ];
    let is_installed = |(name, _): &Peer| {
        if *name == NODE_CACHE {
            return node_cache_program().is_some();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
    };
    all.into_iter().filter(is_installed).collect()
}

/// A peer's name and how it is started in front of an upstream.
pub type Peer = (&'static str, fn(&Place, SocketAddr) -> io::Result<Server>);

/// Unbound: one thread, no validation.
fn unbound(place: &Place, upstream: SocketAddr) -> io::Result<Server> {
    let address = free_address()?;
    let text = format!(
        "server:\n  interface: 127.0.0.1@{}\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
         directory: {:?}\n  use-syslog: no\n  do-daemonize: no\n  do-not-query-localhost: no\n  \
         module-config: iterator\n  num-threads: 1\n  msg-cache-size: 32m\n  rrset-cache-size: 32m\n  \
         so-rcvbuf: 4m\n  outgoing-range: 8192\n  num-queries-per-thread: 4096\n\
         forward-zone:\n  name: .\n  forward-addr: 127.0.0.1@{}\nremote-control:\n  control-enable: no\n",
        address.port(),
        place.path(),
        upstream.port(),
    );
    let mut command = Command::new("unbound");
    command.args(["-d", "-c"]).arg(place.write("unbound.conf", &text)?);
    Server::start("unbound", &command, address, Cores::First)
}

/// Dnsmasq with its largest cache.
fn dnsmasq(_place: &Place, upstream: SocketAddr) -> io::Result<Server> {
    let address = free_address()?;
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.args(["--conf-file=/dev/null", "--pid-file", "--user=", "--listen-address=127.0.0.1"]);
    command.args(["--cache-size=10000", "--dns-forward-max=8192"]);
    command.arg(format!("--port={}", address.port()));
    command.arg(format!("--server=127.0.0.1#{}", upstream.port()));
    Server::start("dnsmasq", &command, address, Cores::First)
}

/// Dnsdist with a packet cache.
fn dnsdist(place: &Place, upstream: SocketAddr) -> io::Result<Server> {
    let address = free_address()?;
    let text = format!(
        "setLocal(\"{address}\")\nnewServer({{address=\"{upstream}\", healthCheckMode=\"up\"}})\n\
         getPool(\"\"):setCache(newPacketCache(100000, {{maxTTL=86400}}))\n"
    );
    let mut command = Command::new("dnsdist");
    command
        .args(["--supervised", "--disable-syslog", "-C"])
        .arg(place.write("dnsdist.conf", &text)?);
    Server::start("dnsdist", &command, address, Cores::First)
}

/// node-cache's engine with its default Corefile for the zone `.`.
fn node_cache(place: &Place, upstream: SocketAddr) -> io::Result<Server> {
    let address = free_address()?;
    let text = format!(
        ".:{} {{\n  errors\n  cache 30\n  reload\n  loop\n  bind 127.0.0.1\n  forward . {upstream}\n  \
         prometheus 127.0.0.1:{}\n}}\n",
        address.port(),
        free_address()?.port(),
    );
    let mut command = Command::new(node_cache_program().ok_or(io::ErrorKind::NotFound)?);
    command.arg("-conf").arg(place.write("Corefile", &text)?);
    Server::start(NODE_CACHE, &command, address, Cores::First)
}
