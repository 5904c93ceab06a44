//! Parts of tests that more than one test needs: messages, and an upstream that does as told.
//!
//! Not for production code: it panics where a test should end.

pub mod message;
pub mod scripted;
