//! The executable: arguments go to `cli`, the exit code comes back.

use std::process::ExitCode;

/// Hands over to the command line.
fn main() -> ExitCode {
    nodens::cli::main()
}
