//! Why there is no response to pass on, and what the stub resolver is told instead.

use std::sync::Arc;

use thiserror::Error;

use crate::dns::ede::{Ede, EdeCode};
use crate::dns::query::Query;
use crate::dns::{Qclass, Qtype, Rcode};
use crate::upstream::ExchangeError;

/// A resolution that ended without a response.
#[derive(Clone, Debug, Error)]
pub enum ResolveError {
    #[error("zone transfers are refused")]
    Transfer,
    #[error("the class is not served")]
    Class,
    #[error("the qtype is no data type")]
    MetaType,
    /// NXNAME, which only proofs hold (RFC 9824).
    #[error("the qtype may not be asked for")]
    Nxname,
    #[error("recursion is not desired and nothing is cached")]
    NotRecursive,
    #[error("a probe of our own came back")]
    OwnProbe,
    #[error(transparent)]
    Exchange(Arc<ExchangeError>),
    /// The same question failed a moment ago (RFC 9520).
    #[error("remembered failure: {rcode}")]
    Remembered { rcode: Rcode, ede: Option<Ede> },
    #[error("an alias chain of our own data is too long or a loop")]
    AliasChain,
    #[error("too many queries are in flight")]
    Overloaded,
    #[error("internal failure")]
    Internal,
}

/// Whose fault a resolution failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Stub,
    Upstream,
    Us,
}

impl ResolveError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Transfer | Self::Class | Self::MetaType | Self::Nxname | Self::NotRecursive => {
                Fault::Stub
            }
            Self::Exchange(error) => match **error {
                ExchangeError::NoUpstream | ExchangeError::Overloaded { .. } => Fault::Us,
                _ => Fault::Upstream,
            },
            Self::Remembered { .. } | Self::OwnProbe => Fault::Upstream,
            Self::AliasChain | Self::Overloaded | Self::Internal => Fault::Us,
        }
    }

    /// The response code for the stub resolver.
    pub fn rcode(&self) -> Rcode {
        match self {
            Self::Transfer | Self::Class | Self::NotRecursive | Self::OwnProbe => Rcode::REFUSED,
            Self::MetaType => Rcode::NOTIMP,
            Self::Nxname => Rcode::FORMERR,
            Self::Remembered { rcode, .. } => *rcode,
            // An upstream's REFUSED or FORMERR is between it and us: the name did not resolve.
            _ => Rcode::SERVFAIL,
        }
    }

    /// The extended error for the stub resolver.
    pub fn ede(&self) -> Option<Ede> {
        let fixed = |code, text| Some(Ede::new(code, text));
        match self {
            Self::Transfer => fixed(EdeCode::PROHIBITED, "no zone transfers"),
            Self::Class => fixed(EdeCode::NOT_SUPPORTED, "class not served"),
            Self::MetaType => fixed(EdeCode::NOT_SUPPORTED, "qtype not served"),
            Self::Nxname => fixed(EdeCode::INVALID_QTYPE, "qtype may not be asked for"),
            Self::NotRecursive => {
                fixed(EdeCode::NOT_AUTHORITATIVE, "not cached, and recursion is not desired")
            }
            Self::Remembered { ede, .. } => {
                let text = ede.as_ref().map(ToString::to_string).unwrap_or_default();
                Some(Ede::with_text(EdeCode::CACHED_ERROR, text))
            }
            Self::OwnProbe => fixed(EdeCode::PROHIBITED, "a query of ours that came back"),
            Self::AliasChain => fixed(EdeCode::INVALID_DATA, "alias chain too long"),
            Self::Overloaded => fixed(EdeCode::OTHER, "too many queries in flight"),
            Self::Internal => fixed(EdeCode::OTHER, "internal failure"),
            Self::Exchange(error) => Some(exchange_ede(error)),
        }
    }

    /// Tells whether the same question is likely to fail again at once, so that RFC 9520 applies.
    pub fn is_resolution_failure(&self) -> bool {
        matches!(self, Self::Exchange(error) if !matches!(**error, ExchangeError::Overloaded { .. }))
    }
}

/// The extended error for a failed exchange.
fn exchange_ede(error: &ExchangeError) -> Ede {
    let code = match error {
        ExchangeError::Failed { ede: Some(ede), .. } => return ede.clone(),
        ExchangeError::Timeout { .. } | ExchangeError::Failed { .. } => {
            EdeCode::NO_REACHABLE_AUTHORITY
        }
        ExchangeError::Unreachable { .. } => EdeCode::NETWORK_ERROR,
        ExchangeError::NoUpstream => EdeCode::NOT_READY,
        _ => EdeCode::OTHER,
    };
    Ede::with_text(code, error.to_string())
}

/// Refuses questions that no cache answers.
///
/// # Errors
/// `Transfer` for AXFR and IXFR, `Class` for classes other than IN and CH, `MetaType` for types that
/// only ever stand in other places of a message, `Nxname` for the one that is no type of data either.
pub fn refuse(query: &Query) -> Result<(), ResolveError> {
    if query.qtype.is_transfer() {
        return Err(ResolveError::Transfer);
    }
    let meta = [Qtype::OPT, Qtype::TKEY, Qtype::TSIG, Qtype::MAILA, Qtype::MAILB, Qtype(0)];
    if meta.contains(&query.qtype) {
        return Err(ResolveError::MetaType);
    }
    if query.qtype == Qtype::NXNAME {
        return Err(ResolveError::Nxname);
    }
    match query.qclass {
        Qclass::IN | Qclass::CH => Ok(()),
        _ => Err(ResolveError::Class),
    }
}
