//! What goes on, live: a bar on a terminal, plain lines elsewhere, always on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where there is no terminal, a line comes this often.
const PLAIN: Duration = Duration::from_secs(5);

/// Shows how far something is.
pub struct Progress {
    /// `None` where stderr is no terminal.
    bar: Option<ProgressBar>,
    /// When the last plain line came.
    told: Option<Instant>,
}

impl Progress {
    /// Starts with `total` steps to go; their unit is the caller's. A quiet one shows nothing.
    pub fn start(total: u64, is_quiet: bool) -> Self {
        if is_quiet {
            return Self { bar: Some(ProgressBar::hidden()), told: None };
        }
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{wide_msg} {bar:24} {percent:>3}%");
            // The template is ours; were it bad, the default bar would do.
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, told: None }
    }

    /// Shows that `done` of the steps are done, and what there is to say.
    pub fn show(&mut self, done: u64, message: &str, now: Instant) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
            return bar.set_position(done);
        }
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= PLAIN) {
            self.told = Some(now);
            // Nobody is left to be told when stderr is closed.
            let _ = writeln!(io::stderr(), "{message}");
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
