//! The only place that reads time.
//!
//! All deadlines and lifetimes count on the monotonic clock, so a jump of the wall clock moves nothing.

use std::time::{Instant, SystemTime};

/// The monotonic clock's reading; inside a paused tokio runtime the paused one.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, for people: logs and reports; and to compare with what the kernel stamps by it.
pub fn wall() -> SystemTime {
    SystemTime::now()
}
