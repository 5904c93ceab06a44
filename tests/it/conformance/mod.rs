//! What the RFCs ask of a caching forwarder, one file per RFC.

mod rfc1035;
mod rfc2308;
mod rfc4035;
mod rfc5452;
mod rfc6761;
mod rfc6891;
mod rfc7766;
mod rfc7871;
mod rfc8482;
mod rfc8767;
mod rfc8906;
mod rfc8914;
mod rfc9520;
