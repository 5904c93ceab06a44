//! The executable: arguments go to `cli`, the exit code comes back.

/// Runs nothing yet.
fn main() {}
