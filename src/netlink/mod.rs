//! Netlink: messages and batches for nftables, for whoever makes tables of packet rules; links,
//! addresses and routes in [`links`].
//!
//! [`nft`] builds a batch of objects, [`expr`] the expressions of its rules, [`netfilter`] sends the
//! batch and proves that it was committed; [`addresses`] gives links their
//! addresses; [`conntrack`] forgets flows; [`attr`] is the encoding below them, `channel` the socket. Written by hand on
//! bare sockets: half of the expressions that we need have no typed form in the packet crates, their
//! parser takes 30 times as long, and a message over 64 kB makes them panic.
//! It knows no DNS, and refuses to decide which rules are right.

pub mod addresses;
pub mod attr;
mod channel;
pub mod conntrack;
pub mod expr;
pub mod links;
pub mod netfilter;
pub mod nft;
mod receipt;
