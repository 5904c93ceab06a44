//! Where the layers come from: file, environment, flags. [`load`] is pure; [`Sources`] is its rim.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors, Fault, Place, Source};
use super::host::Host;
use super::spec::{Flags, Spec};
use super::{Config, build};

/// The file that is read when it exists and no other is named.
pub const DEFAULT_FILE: &str = "/etc/nodens/nodens.toml";

/// The variable that names the file.
pub const FILE_VARIABLE: &str = "NODENS_CONFIG";

/// Everything that a configuration is made of.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Path and text of the file, where there is one.
    pub file: Option<(&'a Path, &'a str)>,
    /// `NODENS_*`; others are passed over.
    pub environment: &'a [(String, String)],
    pub flags: &'a Flags,
    pub host: &'a Host,
}

/// Lays the layers on one another and builds the configuration.
///
/// # Errors
/// Everything that is wrong, not only the first thing.
pub fn load(inputs: &Inputs<'_>) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut spec = match inputs.file {
        Some((path, text)) => Spec::from_toml(path, text, &mut errors),
        None => Spec::default(),
    };
    let variables = inputs.environment.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    spec.overlay(Spec::from_environment(variables, &mut errors));
    spec.overlay(Spec::from_flags(inputs.flags));
    let config = build::build(&spec, inputs.host, &mut errors);
    // Syntax, names and values are checked one after the other; people read from top to bottom.
    errors.sort_by_key(|error| error.place.source.line());
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
}

/// Where this process's configuration comes from: read at start and again on each reload.
#[derive(Clone, Debug)]
pub struct Sources {
    file: PathBuf,
    /// Nobody named the file: it may be missing.
    optional: bool,
    environment: Vec<(String, String)>,
    flags: Flags,
}

impl Sources {
    /// The process's environment with `flags` on top; `file` is `--config`.
    pub fn of_process(file: Option<PathBuf>, flags: Flags) -> Self {
        Self::new(file, flags, std::env::vars_os())
    }

    /// [`Sources::of_process`] with the environment given. What is not UTF-8 is mended, to be refused later.
    fn new(
        file: Option<PathBuf>,
        flags: Flags,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Self {
        let text = |text: OsString| text.to_string_lossy().into_owned();
        let mut named = file;
        let mut ours = Vec::new();
        for (name, value) in environment {
            let name = text(name);
            if name == FILE_VARIABLE {
                named = named.or_else(|| Some(PathBuf::from(value)).filter(|path| path != ""));
            } else if name.starts_with("NODENS_") {
                ours.push((name, text(value)));
            }
        }
        ours.sort();
        let optional = named.is_none();
        let file = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        Self { file, optional, environment: ours, flags }
    }

    /// The file that is read and watched; it may be missing.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the file and the host anew and loads the configuration.
    ///
    /// # Errors
    /// Everything that is wrong, an unreadable file included.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => Some(text),
            Err(error) if self.optional && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(ConfigErrors(vec![self.unreadable(&error)])),
        };
        load(&Inputs {
            file: text.as_deref().map(|text| (self.file.as_path(), text)),
            environment: &self.environment,
            flags: &self.flags,
            host: &Host::read(),
        })
    }

    /// The error for a file that cannot be read.
    fn unreadable(&self, error: &io::Error) -> ConfigError {
        let source = Source::File { path: self.file.as_path().into(), line: 0 };
        let fault = Fault::Unreadable(error.to_string());
        ConfigError { place: Place { source, key: String::new() }, fault }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::config::{LogFormat, PortPolicy, Transport, UpstreamSource};

    /// Loads a file's text with variables and flags on top.
    fn load_all(
        text: &str,
        environment: &[(&str, &str)],
        flags: &Flags,
    ) -> Result<Config, ConfigErrors> {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        load(&Inputs {
            file: Some((Path::new("n.toml"), text)),
            environment: &environment.iter().map(own).collect::<Vec<_>>(),
            flags,
            host: &Host::sample(),
        })
    }

    /// Loads a file's text alone.
    fn load_text(text: &str) -> Result<Config, ConfigErrors> {
        load_all(text, &[], &Flags::default())
    }

    /// The errors of a file's text, each as people read it.
    fn errors(text: &str) -> Vec<String> {
        load_text(text).expect_err(text).0.iter().map(ToString::to_string).collect()
    }

    /// The upstreams of the zone `.`, written together.
    fn root_upstreams(config: &Config) -> String {
        let root = config.forward.iter().find(|forward| forward.zone.is_root());
        match &root.expect("the zone . is always there").upstreams {
            UpstreamSource::Fixed(upstreams) => {
                upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            UpstreamSource::ResolvConf(path) => path.display().to_string(),
        }
    }

    #[test]
    fn no_configuration_at_all_listens_on_loopback_and_asks_the_hosts_nameservers() {
        let config = load_text("").expect("the defaults are valid");
        let listen: Vec<String> = config.listen.iter().map(|l| l.address.to_string()).collect();
        assert_eq!(listen, ["127.0.0.1:53", "[::1]:53"]);
        assert!(config.listen.iter().all(|listen| !listen.required));
        assert_eq!(root_upstreams(&config), "/etc/resolv.conf");
        assert_eq!(config.cache.size, 64 << 20);
        assert_eq!(config.forward[0].timeout, Duration::from_millis(4500));
        assert_eq!((config.upstream_ports.first, config.upstream_ports.last), (32768, 60999));
        assert_eq!(config.upstream_ports.reserved, [40000, 40001]);
        assert_eq!(config.serve.threads, 2);
        assert_eq!(config.admin.socket.as_deref(), Some(Path::new("/run/nodens/admin.sock")));
        assert!(!config.admin.socket_required);
        assert_eq!((config.allow, config.log.format), (None, LogFormat::Text));
    }

    #[test]
    fn every_key_of_a_file_is_used() {
        let config = load_text(
            r#"
listen = ["10.0.0.5", { address = "[fe80::1%eth0]:5300", device = "eth0" }]
allow = ["10.0.0.0/8", "fd00::/8"]
upstream_ports = "10000-20000"
upstream_mark = 0x2f
upstream_conntrack = "keep"
[serve]
threads = 8
receive_buffer = "8MiB"
[cache]
size = "4MiB"
prefetch = false
[[forward]]
zone = "."
upstreams = ["198.18.1.2", "tls://192.0.2.9#dns.example"]
transport = "tcp"
[[forward]]
zone = "Corp.example.org"
upstreams = ["198.18.1.3:5353"]
ports = "pooled"
timeout = "2s"
tls_ca = "/etc/ssl/ca.pem"
[local]
records = ["db.example.org 300 A 192.0.2.1"]
hosts = "/etc/hosts"
version = "none of your business"
[intercept]
mode = "takeover"
addresses = ["10.96.0.10", "fd00:10:96::a"]
private = ["198.18.0.0/28", "fd00::/120"]
fallback = ["10.244.0.5", "10.244.1.7:5353"]
[admin]
listen = []
socket = "/run/a.sock"
[log]
format = "json"
queries = 0.5
"#,
        )
        .expect("valid");
        let only =
            load_text("listen = []\n[intercept]\naddresses = [\"10.96.0.10\"]\n").expect("valid");
        assert!(only.listen.is_empty());
        assert_eq!(config.listen[0].address, "10.0.0.5:53".parse::<SocketAddr>().expect("valid"));
        assert_eq!(config.listen[1].address.to_string(), "[fe80::1%3]:5300");
        assert_eq!(config.listen[1].device.as_deref(), Some("eth0"));
        assert_eq!(root_upstreams(&config), "tcp://198.18.1.2:53 tls://192.0.2.9:853#dns.example");
        let corp = &config.forward[1];
        assert_eq!(corp.zone.to_string(), "corp.example.org.");
        assert_eq!((corp.ports, corp.timeout), (PortPolicy::Pooled, Duration::from_secs(2)));
        let UpstreamSource::Fixed(upstreams) = &corp.upstreams else { panic!("written") };
        assert_eq!(upstreams[0].transport, Transport::Udp);
        assert_eq!(config.local.records[0].rdata, [192, 0, 2, 1]);
        assert!(config.admin.listen.is_empty() && config.admin.socket_required);
        assert_eq!((config.upstream_mark, config.serve.threads), (0x2f, 8));
        assert!(!config.deletes_tracks);
        assert_eq!(config.log.queries, 0.5);
    }

    #[test]
    fn flags_win_over_the_environment_and_the_environment_over_the_file() {
        let file = "[cache]\nsize = \"1MiB\"\n[log]\nlevel = \"warn\"\n\
                    [[forward]]\nzone = \".\"\nupstreams = [\"192.0.2.1\"]\ntimeout = \"1s\"\n";
        let environment = [
            ("NODENS_CACHE__SIZE", "2MiB"),
            ("NODENS_UPSTREAMS", "192.0.2.2, 192.0.2.3"),
            ("NODENS_LOG__LEVEL", "debug"),
            ("NODENS_CACHE__PREFETCH", "false"),
            ("NODENS_SERVE__THREADS", "3"),
            ("NODENS_LISTEN", "10.0.0.5,10.0.0.6:5300"),
            ("HOME", "/root"),
        ];
        let flags = Flags {
            upstreams: vec!["192.0.2.4".to_owned()],
            admin: Some("127.0.0.1:0".to_owned()),
            ..Flags::default()
        };
        let config = load_all(file, &environment, &flags).expect("valid");
        assert_eq!(config.cache.size, 2 << 20);
        assert_eq!((config.cache.prefetch, config.serve.threads), (false, 3));
        assert_eq!(root_upstreams(&config), "192.0.2.4:53");
        assert_eq!(config.forward[0].timeout, Duration::from_secs(1), "the file's zone keeps it");
        assert_eq!(config.log.level, "debug");
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.admin.listen[0].port(), 0);
        let config = load_all(file, &environment, &Flags::default()).expect("valid");
        assert_eq!(root_upstreams(&config), "192.0.2.2:53 192.0.2.3:53");
    }

    /// Broken files, and how the one error begins that each gives.
    const BROKEN: &[(&str, &str)] = &[
        (
            "\n[cache]\nsize = \"64Mb\"",
            "n.toml:3: [cache] size: \"64Mb\" is not a size; write e.g. \"64MiB\"",
        ),
        (
            "[cache]\nsize = 64",
            "n.toml:2: [cache] size: is a whole number, but must be a size in quotation marks like \"64MiB\"",
        ),
        (
            "[cache]\nsize = \"1KiB\"",
            "n.toml:2: [cache] size: 1KiB is out of bounds; write \"0\" for none, or 1MiB to 1024GiB",
        ),
        (
            "[cache]\nfailure_ttl = \"1h\"",
            "n.toml:2: [cache] failure_ttl: \"1h\" is out of bounds; write \"1s\" to \"5m\"",
        ),
        (
            "upstream = [\"192.0.2.1\"]",
            "n.toml:1: unknown key `upstream`, did you mean `upstreams`?",
        ),
        (
            "[cache]\nsiez = \"1MiB\"",
            "n.toml:2: unknown key `[cache] siez`, did you mean `[cache] size`?",
        ),
        ("[cahce]\nsize = \"1MiB\"", "n.toml:1: unknown key `cahce`, did you mean `[cache]`?"),
        (
            "[cluster]\nttl = 5",
            "n.toml:2: [cluster] ttl: is a whole number, but must be a duration in quotation marks like \"30s\"",
        ),
        (
            "[cluster]\nsource = \"files\"",
            "n.toml:2: [cluster] source: `folder` beside \"files\" is missing",
        ),
        (
            "[cluster]\nsource = \"kube\"",
            "n.toml:2: [cluster] source: \"kube\" is not one of watch, files, forward",
        ),
        (
            "[cluster]\ndomains = [\".\"]",
            "n.toml:2: [cluster] domains: \".\" is not a cluster domain; write e.g. \"cluster.local\"",
        ),
        (
            "[cluster]\ndns_service = \"x\"",
            "n.toml:2: [cluster] dns_service: \"x\" is not a Service; write e.g. kube-system/kube-dns",
        ),
        (
            "[[forward]]\nupstream = [\"192.0.2.1\"]\nzone=\"a\"\nupstreams=[\"192.0.2.1\"]",
            "n.toml:2: unknown key `[[forward]] upstream`, did you mean `[[forward]] upstreams`?",
        ),
        (
            "listen = [\"10.0.0.5\",\n\"10.0.0.5:53\"]",
            "n.toml:2: listen: the address 10.0.0.5:53 stands here and at n.toml:1: listen; take one of them out",
        ),
        (
            "listen = []",
            "n.toml:1: listen: the list is empty; leave the key out for the default, or name at least one address",
        ),
        (
            "listen = [{ adress = \"10.0.0.5\" }]",
            "n.toml:1: listen: unknown key `adress`, did you mean `address`?",
        ),
        ("listen = [{ device = \"eth0\" }]", "n.toml:1: listen: address is missing"),
        (
            "[[forward]]\nzone = \"a\"\nupstreams = [\"192.0.2.1\"]\n[[forward]]\nzone = \"A.\"\nupstreams = [\"192.0.2.2\"]",
            "n.toml:4: [[forward]]: the zone a. stands here and at n.toml:1; take one of them out",
        ),
        (
            "[[forward]]\nzone = \"a\"",
            "n.toml:1: [[forward]]: zone a. has no upstreams; add `upstreams = [\"ADDR\"]` to it",
        ),
        ("[[forward]]\nupstreams = [\"192.0.2.1\"]", "n.toml:1: [[forward]]: zone is missing"),
        (
            "[[forward]]\nzone = \".\"\nupstreams = []",
            "n.toml:3: [[forward]] upstreams: the list is empty; leave the key out for the default, or name at least one upstream",
        ),
        (
            "upstreams = [\"192.0.2.1\"]\n[[forward]]\nzone = \".\"\nupstreams = [\"192.0.2.2\"]",
            "n.toml:1: upstreams: upstreams of the zone . stands here and at n.toml:4: [[forward]] upstreams; take one of them out",
        ),
        (
            "upstream_ports = \"1000-1046\"",
            "n.toml:1: upstream_ports: 1000-1046 leaves one of the three port classes 15 source ports, and each needs 16; take a wider range",
        ),
        ("[intercept]\nmode = \"own\"", "n.toml:2: [intercept] mode: "),
        (
            "listen = [\"192.0.2.1\"]\n[intercept]\naddresses = [\"192.0.2.1\"]",
            "n.toml:3: [intercept] addresses: 192.0.2.1 stands in `listen` too",
        ),
        (
            "upstreams = [\"192.0.2.1\"]\nupstream_mark = 0\n[intercept]\naddresses = [\"192.0.2.1\"]",
            "n.toml:1: upstreams: the upstream 192.0.2.1:53 is nodens itself",
        ),
        (
            "upstreams = [\"192.0.2.1\"]\n[intercept]\nmode = \"bind\"\naddresses = [\"192.0.2.1\"]",
            "n.toml:1: upstreams: the upstream 192.0.2.1:53 is nodens itself",
        ),
        (
            "upstreams = [\"169.254.20.10\"]\n[intercept]\nmode = \"takeover\"",
            "n.toml:1: upstreams: the upstream 169.254.20.10:53 is nodens itself",
        ),
        (
            "[intercept]\naddresses = [\"127.0.0.1\"]",
            "n.toml:2: [intercept] addresses: \"127.0.0.1\" is not an address that can be intercepted",
        ),
        ("[local]\nrecords = [\"a A 192.0.2.1\",\n\"b A nobody\"]", "n.toml:3: [local] records: "),
        (
            "[cache]\nmin_ttl = \"1h\"\nmax_ttl = \"1m\"",
            "n.toml:2: [cache] min_ttl: is larger than max_ttl; turn them round",
        ),
        (
            "[[forward]]\nzone = \".\"\nmin_ttl = \"1h\"\nmax_ttl = \"1m\"",
            "n.toml:3: [[forward]] min_ttl: is larger than max_ttl; turn them round",
        ),
        (
            "[cache]\nmin_ttl = \"1m\"\n[[forward]]\nzone = \".\"\nmax_ttl = \"10s\"",
            "n.toml:5: [[forward]] max_ttl: is smaller than min_ttl; turn them round",
        ),
        (
            "[[forward]]\nzone = \".\"\naaaa = \"never\"",
            "n.toml:3: [[forward]] aaaa: \"never\" is not one of forward, nodata, auto",
        ),
        (
            "[[forward]]\nzone = \".\"\ndns64 = \"64:ff9b::/64\"\naaaa = \"nodata\"",
            "n.toml:3: [[forward]] dns64: makes no sense beside aaaa = \"nodata\"; take one of them out",
        ),
        (
            "[[forward]]\nzone = \".\"\ndns64 = \"64:ff9b::/95\"",
            "n.toml:3: [[forward]] dns64: \"64:ff9b::/95\" is not a DNS64 prefix",
        ),
        (
            "[[forward]]\nzone = \".\"\nrebind_allow = [\n\"a..b\"]",
            "n.toml:4: [[forward]] rebind_allow: \"a..b\" is not a domain name",
        ),
        ("cache = 5", "n.toml:1: cache: is a whole number, but must be a table"),
        (
            "[serve]\nthreads = -1",
            "n.toml:2: [serve] threads: is negative, but must be a whole number, 0 or more",
        ),
    ];

    #[test]
    fn an_error_names_its_line_and_the_mend() {
        for (text, error) in BROKEN {
            let found = errors(text);
            assert!(found.len() == 1 && found[0].starts_with(error), "{text}\n{found:#?}");
        }
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let text =
            "lsten = [\"10.0.0.5\"]\n[cache]\nsize = \"x\"\nstale = \"y\"\n[log\nlevel = 1\n";
        let found = errors(text);
        let lines: Vec<&str> = found.iter().filter_map(|error| error.get(..9)).collect();
        for line in ["n.toml:1:", "n.toml:3:", "n.toml:4:", "n.toml:5:"] {
            assert!(lines.contains(&line), "{line} {found:#?}");
        }
    }

    #[test]
    fn an_upstream_that_is_a_listen_address_is_refused_as_a_loop() {
        for text in [
            "listen = [\"127.0.0.1:53\"]\nupstreams = [\"127.0.0.1\"]",
            "upstreams = [\n\"127.0.0.1\"]",
            "listen = [\"0.0.0.0\"]\nupstreams = [\"127.0.0.53\"]",
        ] {
            let found = errors(text);
            assert!(found.len() == 1 && found[0].contains("every query would go round"), "{text}");
            assert!(found[0].starts_with("n.toml:2: upstreams: "), "{found:?}");
        }
        assert!(load_text("listen = [\"127.0.0.1:5300\"]\nupstreams = [\"127.0.0.1\"]").is_ok());
    }

    #[test]
    fn unknown_variables_are_refused_but_for_those_that_kubernetes_makes() {
        let error = load_all("", &[("NODENS_CACHE__SIEZ", "1MiB")], &Flags::default());
        assert_eq!(
            error.expect_err("unknown").to_string(),
            "NODENS_CACHE__SIEZ: unknown environment variable, did you mean `NODENS_CACHE__SIZE`?"
        );
        for name in [
            "NODENS_SERVICE_HOST",
            "NODENS_SERVICE_PORT",
            "NODENS_SERVICE_PORT_DNS_TCP",
            "NODENS_PORT",
            "NODENS_PORT_53_UDP",
            "NODENS_PORT_53_UDP_ADDR",
            "NODENS_ADMIN_PORT_9253_TCP_PROTO",
            "NODENS_ADMIN_SERVICE_HOST",
            "NODENS_CONFIG",
        ] {
            assert!(load_all("", &[(name, "x")], &Flags::default()).is_ok(), "{name}");
        }
        for name in ["NODENS_FORWARD", "NODENS_FORWARD__TIMEOUT"] {
            let error = load_all("", &[(name, "x")], &Flags::default()).expect_err(name);
            assert!(matches!(error.0[0].fault, Fault::FileOnly));
        }
    }

    #[test]
    fn a_broken_variable_or_flag_is_named() {
        let environment = [("NODENS_SERVE__THREADS", "many")];
        let flags = Flags { listen: vec!["nowhere".to_owned()], ..Flags::default() };
        let found = load_all("", &environment, &flags).expect_err("both are wrong").to_string();
        assert_eq!(
            found,
            "--listen: \"nowhere\" is not an address; write e.g. 192.0.2.1:53 or [2001:db8::1]:53\n\
             NODENS_SERVE__THREADS: is a text, but must be a whole number, 0 or more"
        );
    }

    #[test]
    fn every_key_is_read() {
        for key in crate::config::keys::KEYS {
            let date = "1979-05-27";
            let text = match key.name.split_once('.') {
                None => format!("{} = {date}", key.name),
                Some(("forward", name)) => format!("[[forward]]\n{name} = {date}"),
                Some((table, name)) => format!("[{table}]\n{name} = {date}"),
            };
            let text = match key.name {
                "forward" | "forward.zone" => text,
                name if name.starts_with("forward.") => text + "\nzone = \".\"",
                _ => text,
            };
            let found = errors(&text);
            assert!(found.len() == 1 && found[0].contains("a date, but"), "{text}\n{found:?}");
        }
    }

    #[test]
    fn only_a_file_that_somebody_named_must_exist() {
        let missing = std::env::temp_dir().join("nodens-has-no-such-file.toml");
        let sources = Sources::new(Some(missing.clone()), Flags::default(), std::iter::empty());
        let error = sources.load().expect_err("it is missing").to_string();
        assert!(error.starts_with(&format!("{}: cannot be read: ", missing.display())), "{error}");
        let mut sources = Sources::new(None, Flags::default(), std::iter::empty());
        assert_eq!(sources.file(), Path::new(DEFAULT_FILE));
        sources.file = missing;
        assert!(sources.load().is_ok());
    }
}
