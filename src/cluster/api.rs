//! The way to the API server: one HTTP/2 connection that notices a dead peer, and credentials that are read
//! anew when they are refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceExt};

use super::watch::WatchError;
use crate::clock;

/// How long a connection attempt may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How often a quiet connection is asked whether it lives, and how long it may take to say so
/// (client-go's own values).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(15);

/// How often credentials that stay refused are read anew: each time costs a connection.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How many bytes the API server may send ahead of our reading, in a first list above all.
const WINDOW: u32 = 1 << 20;

/// The way to the API server, by the credentials that were there when it was made.
pub struct Way {
    kubeconfig: Option<PathBuf>,
    client: ArcSwap<Client>,
    /// When the credentials were last read anew.
    renewed: Mutex<Option<Instant>>,
}

impl Way {
    /// The way that `kubeconfig` names, or the pod's service account.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn open(kubeconfig: Option<&Path>) -> Result<Self, WatchError> {
        let client = ArcSwap::from_pointee(connect(kubeconfig).await?);
        Ok(Self { kubeconfig: kubeconfig.map(Path::to_owned), client, renewed: Mutex::default() })
    }

    /// A way by this client.
    #[cfg(test)]
    pub fn by(client: Client) -> Self {
        Self { kubeconfig: None, client: ArcSwap::from_pointee(client), renewed: Mutex::default() }
    }

    /// The client of the moment.
    pub fn client(&self) -> Arc<Client> {
        self.client.load_full()
    }

    /// Reads the credentials anew when the API server has refused those of `used`, unless somebody has done so
    /// since, or just before: kube would keep a token for most of a minute. What cannot be read changes nothing.
    pub async fn renew(&self, used: &Arc<Client>) {
        if !Arc::ptr_eq(used, &self.client()) || !self.is_renewal_due(clock::now()) {
            return;
        }
        match connect(self.kubeconfig.as_deref()).await {
            Ok(client) => self.client.store(Arc::new(client)),
            Err(error) => tracing::warn!(%error, "the credentials cannot be read anew"),
        }
    }

    /// Tells whether the credentials may be read anew, and takes it as done.
    fn is_renewal_due(&self, now: Instant) -> bool {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = renewed.is_none_or(|last| now.saturating_duration_since(last) >= RENEW_EVERY);
        if rested {
            *renewed = Some(now);
        }
        rested
    }
}

/// A way to the API server that `kubeconfig` names, or the pod's service account.
///
/// # Errors
/// When there is neither, or it cannot be used; that the server is away is none.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, WatchError> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().map_err(|error| WatchError::NoServiceAccount(error.into()))?,
    };
    client(&config).map_err(|error| WatchError::Unusable(error.into()))
}

/// The configuration that a kubeconfig's current context says.
async fn from_file(path: &Path) -> Result<Config, WatchError> {
    let wrong = |source| WatchError::Kubeconfig { path: path.to_owned(), source };
    let read = Kubeconfig::read_from(path).map_err(|error| wrong(error.into()))?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(read, &options).await.map_err(|error| wrong(error.into()))
}

/// As kube makes it, but with HTTP/2, so that all watches share one connection, and with pings.
fn client(config: &Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(PING_EVERY));
    tcp.set_nodelay(true);
    let tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?);
    let mut tls = tls.https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name =
            name.clone().try_into().map_err(|error| kube::Error::Service(Box::new(error)))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let http: Http<_, Body> = Http::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_LIMIT)
        .http2_initial_stream_window_size(WINDOW)
        .http2_initial_connection_window_size(WINDOW)
        .build(tls.enable_all_versions().wrap_connector(tcp));
    // The layers want one type of error.
    let http = http.map_err(BoxError::from);
    let built = ClientBuilder::new(http, "default").with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => built.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => built.with_layer(&config.base_uri_layer()).build(),
    })
}
