//! The sockets: TCP addresses that may still be taken by another instance, and a socket file that is
//! taken over from it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use super::connection::Limited;
use crate::config::Admin;
use crate::shutdown::Shutdown;

/// How long a TCP address that is taken is left alone between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// Mode of the socket file: the owner and its group may ask and change.
const SOCKET_MODE: u32 = 0o660;

/// Why admin cannot be reached as configured.
#[derive(Debug, Error)]
pub enum DoorsError {
    #[error(
        "cannot make the admin socket {}: {reason} (choose another path with `admin.socket`)",
        path.display()
    )]
    Socket { path: PathBuf, reason: io::Error },
    #[error(
        "the admin socket's path {} is taken by something that is no socket (choose another path with \
         `admin.socket`)",
        path.display()
    )]
    NoSocket { path: PathBuf },
}

/// Where admin answers.
#[derive(Debug)]
pub struct Doors {
    tcp: Vec<SocketAddr>,
    unix: Option<SocketFile>,
}

impl Doors {
    /// Makes the socket file; TCP addresses are bound later, as soon as they are free.
    ///
    /// # Errors
    /// The socket file cannot be made and the configuration asks for it; else that is a warning.
    pub fn open(config: &Admin) -> Result<Self, DoorsError> {
        let made = config.socket.as_deref().map(SocketFile::bind).transpose();
        let unix = match made {
            Err(error) if config.socket_required => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "no admin socket");
                None
            }
            Ok(unix) => unix,
        };
        Ok(Self { tcp: config.listen.clone(), unix })
    }

    /// The TCP addresses and the socket file.
    pub(super) fn split(self) -> (Vec<SocketAddr>, Option<SocketFile>) {
        (self.tcp, self.unix)
    }
}

/// A listening unix socket and the file that leads to it, removed at the end if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    listener: Option<StdUnixListener>,
    file: OwnFile,
}

/// A file of ours: device and inode tell whether another instance has put its own in the place.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file stays");
        }
    }
}

impl SocketFile {
    /// Binds beside `path` and renames over it: there is no moment without a socket, and an older
    /// instance keeps its open connections.
    fn bind(path: &Path) -> Result<Self, DoorsError> {
        let fail = |reason| DoorsError::Socket { path: path.to_owned(), reason };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(fail)?;
        }
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(DoorsError::NoSocket { path: path.to_owned() });
        }
        let beside = beside(path);
        // Left by a dead process that had our process id.
        let _ = fs::remove_file(&beside);
        let listener = StdUnixListener::bind(&beside).map_err(fail)?;
        let made = take_place(&listener, &beside, path);
        let identity = made.inspect_err(|_| drop(fs::remove_file(&beside))).map_err(fail)?;
        let file = OwnFile { path: path.to_owned(), identity };
        Ok(Self { listener: Some(listener), file })
    }
}

/// A name of our own in the folder of `path`, no longer than a socket address allows if `path` is.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(std::process::id().to_string());
    path.with_file_name(name)
}

/// Makes `beside` ready and renames it to `path`; gives back its device and inode.
fn take_place(listener: &StdUnixListener, beside: &Path, path: &Path) -> io::Result<(u64, u64)> {
    listener.set_nonblocking(true)?;
    fs::set_permissions(beside, fs::Permissions::from_mode(SOCKET_MODE))?;
    let made = fs::symlink_metadata(beside)?;
    fs::rename(beside, path)?;
    Ok((made.dev(), made.ino()))
}

/// Answers on the socket file until `stop` begins; then removes the file if it is still ours.
pub(super) async fn serve_unix(mut socket: SocketFile, app: Router, stop: Shutdown) {
    let path = socket.file.path.clone();
    let Some(Ok(listener)) = socket.listener.take().map(UnixListener::from_std) else {
        tracing::warn!(path = %path.display(), "the admin socket cannot be served");
        return;
    };
    tracing::info!(path = %path.display(), "admin listens");
    let file = socket.file;
    // The file goes first: whoever finds it must find someone behind it.
    let unlinked = async move {
        stop.begun().await;
        drop(file);
    };
    serve_on(listener, app, unlinked).await;
}

/// Answers on a TCP address until `stop` begins, as soon as it can be bound.
pub(super) async fn serve_tcp(address: SocketAddr, app: Router, stop: Shutdown) {
    let listener = tokio::select! {
        listener = bind_tcp(address) => listener,
        () = stop.begun() => return,
    };
    serve_on(listener, app, async move { stop.begun().await }).await;
}

/// Binds a TCP address, however long that takes; says once that it is taken.
async fn bind_tcp(address: SocketAddr) -> TcpListener {
    let mut is_first = true;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "admin listens");
                return listener;
            }
            Err(error) if is_first => {
                tracing::warn!(%address, %error, "admin cannot listen yet, trying each second");
            }
            Err(_) => {}
        }
        is_first = false;
        tokio::time::sleep(RETRY).await;
    }
}

/// Answers on `listener` until `end` completes and the last request is answered.
async fn serve_on<L>(listener: L, app: Router, end: impl Future<Output = ()> + Send + 'static)
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let served = axum::serve(Limited::new(listener), app).with_graceful_shutdown(end).await;
    if let Err(error) = served {
        tracing::warn!(%error, "admin stopped listening");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A fresh folder, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let unique = format!("nodens-doors-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(unique);
            fs::create_dir(&path).expect("a fresh folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn admin(socket: PathBuf, socket_required: bool) -> Admin {
        Admin { listen: Vec::new(), socket: Some(socket), socket_required }
    }

    #[test]
    fn a_second_instance_takes_the_socket_over_and_the_first_leaves_it_alone() {
        let folder = Folder::new("second");
        let path = folder.0.join("run/admin.sock");
        let first = Doors::open(&admin(path.clone(), true)).expect("binds");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), SOCKET_MODE);
        let second = Doors::open(&admin(path.clone(), true)).expect("takes over");
        drop(first);
        let listener = second.unix.as_ref().and_then(|unix| unix.listener.as_ref());
        let _asker = UnixStream::connect(&path).expect("the second listens");
        listener.expect("bound").accept().expect("the asker came to the second");
        drop(second);
        assert!(!path.exists(), "removed by its owner");
        let left = fs::read_dir(path.parent().expect("folder")).expect("there").count();
        assert_eq!(left, 0, "nothing is left beside");
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_overwritten() {
        let folder = Folder::new("file");
        let path = folder.0.join("precious");
        fs::write(&path, "data").expect("written");
        let error = Doors::open(&admin(path.clone(), true)).expect_err("refused");
        assert!(matches!(error, DoorsError::NoSocket { .. }), "{error}");
        let mut kept = String::new();
        fs::File::open(&path).expect("there").read_to_string(&mut kept).expect("text");
        assert_eq!(kept, "data");
    }

    #[test]
    fn a_socket_that_cannot_be_made_is_fatal_only_when_it_was_asked_for() {
        let folder = Folder::new("fatal");
        fs::write(folder.0.join("file"), "").expect("written");
        let path = folder.0.join("file/admin.sock");
        let error = Doors::open(&admin(path.clone(), true)).expect_err("no folder there");
        assert!(error.to_string().contains("choose another path"), "{error}");
        assert!(Doors::open(&admin(path, false)).expect("a warning").unix.is_none());
    }
}
