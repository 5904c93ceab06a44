//! What a reload cannot put in force: such keys stay as they are until a restart, and are told of.

use super::cluster;
use crate::config::{Cache, Config, InterceptMode, Log, Serve};

/// The configuration in force when `new` is loaded while `old` is, and the keys of `new` that wait for a
/// restart.
pub fn split(old: &Config, new: Config) -> (Config, Vec<&'static str>) {
    let is_bind = |config: &Config| config.intercept.mode == InterceptMode::Bind;
    let intercept = if is_bind(old) == is_bind(&new) { &new } else { old }.intercept.clone();
    let written = new.clone();
    let in_force = Config {
        listen: old.listen.clone(),
        upstream_ports: old.upstream_ports.clone(),
        upstream_mark: old.upstream_mark,
        deletes_tracks: old.deletes_tracks,
        serve: Serve { udp_payload: new.serve.udp_payload, ..old.serve.clone() },
        cache: Cache { size: old.cache.size, ..new.cache },
        cluster: old.cluster.clone(),
        intercept,
        admin: old.admin.clone(),
        log: Log { format: old.log.format, ..new.log },
        ..new
    };
    let mut waiting = in_force.keys_unlike(&written);
    // Nobody tells their endpoints where there is no cluster zone.
    if in_force.cluster.source.is_none() && cluster::names_services(&in_force) {
        waiting.push("forward.upstreams");
    }
    (in_force, waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(text: &str) -> Config {
        let inputs = config::Inputs {
            file: Some((std::path::Path::new("test.toml"), text)),
            environment: &[],
            flags: &config::Flags::default(),
            host: &config::host::Host::sample(),
        };
        config::load(&inputs).expect("the test's configuration is right")
    }

    #[test]
    fn keys_that_wait_for_a_restart_are_named_and_stay_as_they_are() {
        let old = config("[cluster]\nsource = \"files\"\nfolder = \"/m\"");
        for (text, waiting) in [
            ("[cluster]\nsource = \"files\"\nfolder = \"/m\"", &[][..]),
            ("[cluster]\nsource = \"files\"\nfolder = \"/m\"\nttl = \"9s\"", &["cluster.ttl"]),
            (
                "[cluster]\nsource = \"files\"\nfolder = \"/m\"\ndomains = [\"a.example\"]\n[cache]\n\
                 size = \"1MiB\"\nstale = \"1h\"\n[log]\nformat = \"json\"\nlevel = \"debug\"",
                &["cache.size", "cluster.domains", "log.format"],
            ),
            ("", &["cluster.source", "cluster.folder"]),
            (
                "upstream_mark = 7\n[intercept]\nmode = \"bind\"\naddresses = [\"192.0.2.1\"]\n[cluster]\n\
                 source = \"files\"\nfolder = \"/m\"\n[serve]\nudp_payload = 1400\nthreads = 7",
                &["upstream_mark", "serve.threads", "intercept.mode", "intercept.addresses"],
            ),
        ] {
            let new = config(text);
            let (in_force, keys) = split(&old, new.clone());
            assert_eq!(keys, waiting, "{text}");
            assert_eq!(in_force.cluster, old.cluster, "{text}");
            assert_eq!(
                (in_force.cache.size, in_force.cache.stale),
                (old.cache.size, new.cache.stale)
            );
            assert_eq!(in_force.serve.udp_payload, new.serve.udp_payload);
            assert_eq!(in_force.log.level, new.log.level);
            assert_eq!(split(&in_force, in_force.clone()).1, [""; 0], "{text}");
        }
    }

    #[test]
    fn upstreams_that_nobody_follows_wait_for_a_restart() {
        let new = config(
            "[cluster]\nsource = \"watch\"\n[[forward]]\nzone = \"example.org\"\n\
             upstreams = [\"service:shop/dns\"]",
        );
        let (_, keys) = split(&config(""), new.clone());
        assert_eq!(keys, ["cluster.source", "forward.upstreams"]);
        assert_eq!(split(&new, new.clone()).1, [""; 0]);
    }
}
