//! Configuration text → [`nodens::config::Config`].
//!
//! Any text is accepted or refused with errors that say something; what is accepted prints to TOML that loads to the same
//! configuration.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nodens::config::Config;
use nodens::config::endpoint::Interfaces;
use nodens::config::error::ConfigErrors;
use nodens::config::host::Host;
use nodens::config::load::{Inputs, load};
use nodens::config::spec::Flags;

fuzz_target!(|text: &str| match read(text) {
    Ok(config) => {
        let printed = config.to_toml();
        match read(&printed) {
            Ok(again) => assert_eq!(again, config, "printed as:\n{printed}"),
            Err(errors) => panic!("{errors}\nin what was printed:\n{printed}"),
        }
    }
    Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty()),
});

/// Loads `text` as the file of a host that is always the same.
fn read(text: &str) -> Result<Config, ConfigErrors> {
    let host = Host {
        ports: (32768, 60999),
        reserved: vec![40000],
        cores: 2,
        interfaces: Interfaces::from_if_inet6("fe800000 03 40 20 80 eth0\n"),
    };
    load(&Inputs {
        file: Some((Path::new("nodens.toml"), text)),
        environment: &[],
        flags: &Flags::default(),
        host: &host,
    })
}
