//! The Services that an API server has at the moment, for a load that asks for them.

use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use super::api;
use super::feed::encode;
use super::object::Meta;
use super::watch::WatchError;

/// Services on one page of the list.
const PAGE: usize = 500;

/// Why they are not to be had.
#[derive(Debug, Error)]
pub enum ServicesError {
    #[error("this is no pod with a service account; name a kubeconfig by --kubeconfig")]
    NoWay,
    #[error(transparent)]
    Way(WatchError),
    #[error("the API server does not list its Services: {0}")]
    Refused(Box<dyn std::error::Error + Send + Sync>),
}

/// One page of a list.
#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Option<Vec<Item>>,
}

/// Where a page stands.
#[derive(Deserialize)]
struct PageMeta {
    #[serde(rename = "continue", default)]
    next: String,
}

/// What is read of a Service.
#[derive(Deserialize)]
struct Item {
    metadata: Meta,
}

/// The names `SERVICE.NAMESPACE.svc` of all Services, in the API server's order.
///
/// # Errors
/// When there is no way to the API server, or it refuses.
pub async fn names(kubeconfig: Option<&Path>) -> Result<Vec<String>, ServicesError> {
    let server = api::connect(kubeconfig).await.map_err(|error| match error {
        WatchError::NoServiceAccount(_) => ServicesError::NoWay,
        other => ServicesError::Way(other),
    })?;
    let (mut names, mut next) = (Vec::new(), String::new());
    loop {
        let target = format!("/api/v1/services?limit={PAGE}&continue={}", encode(&next));
        let request = http::Request::get(target).body(Vec::new());
        let request = request.map_err(|error| ServicesError::Refused(error.into()))?;
        let page: Page =
            server.request(request).await.map_err(|error| ServicesError::Refused(error.into()))?;
        let items = page.items.unwrap_or_default().into_iter().map(|item| item.metadata);
        names.extend(items.map(|meta| format!("{}.{}.svc", meta.name, meta.namespace)));
        next = page.metadata.next;
        if next.is_empty() {
            return Ok(names);
        }
    }
}
