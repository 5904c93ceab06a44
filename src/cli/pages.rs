//! `nodens completions` and `nodens man`: made from the arguments themselves.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, Failure, print};

/// Print shell completions
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  nodens completions bash > /etc/bash_completion.d/nodens")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "nodens", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}

/// Print the manual page, or write one page per command
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  nodens man | man --local-file -\n  nodens man /usr/share/man/man1"
)]
pub(super) struct Man {
    /// Directory for nodens.1, nodens-run.1 ...; made where it is missing
    dir: Option<PathBuf>,
}

impl Man {
    /// Prints the main page, or writes all of them.
    pub(super) fn run(self) -> Result<(), Failure> {
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            return print(&String::from_utf8_lossy(&page));
        };
        std::fs::create_dir_all(&dir)?;
        Ok(clap_mangen::generate_to(Arguments::command(), dir)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = std::env::temp_dir().join(format!("nodens-man-{}", std::process::id()));
        Man { dir: Some(dir.clone()) }.run().expect("written");
        for page in ["nodens", "nodens-run", "nodens-lookup", "nodens-cache-flush"] {
            let text = std::fs::read_to_string(dir.join(format!("{page}.1"))).expect(page);
            assert!(text.contains(".TH"), "{page}");
        }
        std::fs::remove_dir_all(dir).expect("ours");
    }
}
