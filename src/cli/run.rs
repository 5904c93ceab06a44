//! `nodens run`

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::config::{Flags, Sources};

/// Answer queries until SIGTERM
#[derive(Args, Debug)]
#[command(
    long_about = "Answer queries until SIGTERM.\n\n\
        Without any configuration nodens listens on 127.0.0.1 and ::1 and forwards to the nameservers of \
        /etc/resolv.conf. Values come from the built-in defaults, the file, the environment \
        (NODENS_CACHE__SIZE=32MiB) and the flags; what comes later replaces what came earlier. \
        SIGHUP or a change of the file reloads it; a bad one is refused and the old one stays.",
    after_help = "Examples:\n  \
        nodens run --listen 127.0.0.1:5300\n  \
        nodens run --listen 10.0.0.5 --listen '[fd00::5]' --upstream tls://192.0.2.9#dns.example\n  \
        nodens run --config /etc/nodens/nodens.toml --log-level nodens=debug\n\n\
        `nodens check-config --keys` lists every key of the file."
)]
pub(super) struct Run {
    /// Configuration file [default: $NODENS_CONFIG, else /etc/nodens/nodens.toml where it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to answer on; may be repeated; port 53 unless said
    #[arg(long, short, value_name = "ADDR[:PORT]")]
    listen: Vec<String>,
    /// Recursive resolver to ask for all names without a zone of their own; may be repeated
    #[arg(long, short, value_name = "ADDR[:PORT]")]
    upstream: Vec<String>,
    /// How queries are intercepted: takeover, bind or none
    #[arg(long, value_name = "MODE")]
    intercept: Option<String>,
    /// Address of metrics and probes
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<String>,
    /// error, warn, info, debug, trace, or filters like nodens=debug
    #[arg(long, value_name = "L")]
    log_level: Option<String>,
    /// Start beside another instance on the same addresses, which then drains
    #[arg(long)]
    take_over: bool,
}

impl Run {
    /// Runs the daemon; returns when it has drained.
    pub(super) fn run(self) -> Result<(), Failure> {
        let flags = Flags {
            listen: self.listen,
            upstreams: self.upstream,
            intercept: self.intercept,
            admin: self.admin,
            log_level: self.log_level,
        };
        let sources = Sources::of_process(self.config, flags);
        Ok(crate::app::run(&sources, self.take_over)?)
    }
}
