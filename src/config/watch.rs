//! Files that the configuration names, looked at once a second: has one changed, and is it whole again?
//!
//! Looking is a stat of what the path leads to, so a swapped symlink (Kubernetes' `..data`) counts, and a
//! folder that came late needs no care. What a change means is the app's business.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Config, UpstreamSource};

/// How often each file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    size: u64,
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        }
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// As it was when it was last read.
    None,
    /// Different, but perhaps half written: the next look decides.
    Settling,
    /// Different, and the same as at the look before. Said once.
    Settled,
}

/// The memory of one file.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// As it was at first, or when a change was last reported.
    known: Option<Stamp>,
    /// As it was at the last look.
    last: Option<Stamp>,
}

impl Watched {
    /// A file as it is when it is read; `None` means that it is missing.
    pub fn new(observed: Option<Stamp>) -> Self {
        Self { known: observed, last: observed }
    }

    /// Compares the file with what is remembered.
    ///
    /// A file that goes missing is no change: what was read from it stays in use. One that appears, at
    /// first or again, is one, unless it is the very file that was known.
    pub fn look(&mut self, observed: Option<Stamp>) -> Change {
        let is_steady = observed == self.last;
        self.last = observed;
        if observed.is_none() || observed == self.known {
            return Change::None;
        }
        if !is_steady {
            return Change::Settling;
        }
        self.known = observed;
        Change::Settled
    }
}

/// The files that are watched.
#[derive(Debug)]
pub struct Watch {
    files: Vec<(PathBuf, Watched)>,
    next_look: Instant,
    /// Found changed, not yet reported.
    due: Vec<PathBuf>,
}

impl Watch {
    /// Watches `files` from now on. Make it before the files are read, so that no change falls between.
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut watch =
            Self { files: Vec::new(), next_look: crate::clock::now() + INTERVAL, due: Vec::new() };
        watch.follow(files);
        watch
    }

    /// Watches exactly `files` from now on; those that were watched before keep their memory.
    pub fn follow(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let files: BTreeSet<PathBuf> = files.into_iter().collect();
        self.due.retain(|path| files.contains(path));
        let old = std::mem::take(&mut self.files);
        self.files.extend(files.into_iter().map(|path| {
            let known = old.iter().find(|(other, _)| *other == path);
            let watched = known.map(|(_, watched)| *watched);
            let watched = watched.unwrap_or_else(|| Watched::new(stamp(std::fs::metadata(&path))));
            (path, watched)
        }));
    }

    /// Waits until files have changed and kept still for a look; gives them back, at least one, sorted.
    ///
    /// # Cancel safety
    /// A change that was found is reported by the next call.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        while self.due.is_empty() {
            tokio::time::sleep_until(self.next_look.into()).await;
            let mut observed = Vec::with_capacity(self.files.len());
            for (path, _) in &self.files {
                // Another thread waits for a dead network file system, not the control runtime.
                observed.push(stamp(tokio::fs::metadata(path).await));
            }
            // Given up before here, no file was looked at: two looks are an interval apart.
            for ((path, watched), observed) in self.files.iter_mut().zip(observed) {
                if watched.look(observed) == Change::Settled {
                    self.due.push(path.clone());
                }
            }
            self.next_look = crate::clock::now() + INTERVAL;
        }
        std::mem::take(&mut self.due)
    }
}

/// The stamp of what a stat found; whatever cannot be looked at counts as missing.
fn stamp(found: std::io::Result<Metadata>) -> Option<Stamp> {
    found.ok().as_ref().map(Stamp::from)
}

/// The files that `config` was read from or names: itself, resolv.conf, hosts, TLS roots.
pub fn files_of(config: &Config, file: Option<&Path>) -> BTreeSet<PathBuf> {
    let mut files: BTreeSet<PathBuf> = file.into_iter().map(Path::to_owned).collect();
    files.extend(config.local.hosts.clone());
    for forward in &config.forward {
        files.extend(forward.tls_ca.clone().filter(|path| path != Path::new(super::SYSTEM_ROOTS)));
        if let UpstreamSource::ResolvConf(path) = &forward.upstreams {
            files.insert(path.clone());
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A stamp that `size` tells from others.
    fn sized(size: u64) -> Option<Stamp> {
        Some(Stamp { device: 1, inode: 1, modified: (0, 0), size })
    }

    /// A fresh folder, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let unique = format!("nodens-watch-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(unique);
            fs::create_dir(&path).expect("a fresh folder");
            Self(path)
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Waits for what `changed` reports within `looks` intervals; empty when it reports nothing.
    async fn report(watch: &mut Watch, looks: u32) -> Vec<PathBuf> {
        tokio::time::timeout(INTERVAL * looks, watch.changed()).await.unwrap_or_default()
    }

    #[test]
    fn a_change_is_reported_once_after_two_equal_looks() {
        use Change::{None as Same, Settled, Settling};
        type Look = (Option<Stamp>, Change);
        let half_written = [(sized(2), Settling), (sized(3), Settling), (sized(3), Settled)];
        let once = [(sized(2), Settling), (sized(2), Settled), (sized(2), Same)];
        let taken_back = [(sized(2), Settling), (sized(1), Same), (sized(1), Same)];
        let replaced = [(None, Same), (sized(2), Settling), (sized(2), Settled)];
        let back_again = [(None, Same), (None, Same), (sized(1), Same)];
        for looks in [half_written, once, taken_back, replaced, back_again] {
            let mut watched = Watched::new(sized(1));
            for (observed, change) in looks {
                assert_eq!(watched.look(observed), change, "{looks:?}");
            }
        }
        let mut missing = Watched::new(None);
        let appears: [Look; 3] = [(None, Same), (sized(1), Settling), (sized(1), Settled)];
        for (observed, change) in appears {
            assert_eq!(missing.look(observed), change);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_symlink_swapped_as_kubernetes_does_it_is_a_change() {
        let folder = Folder::new("swap");
        let publish = |version: &str| {
            fs::create_dir(folder.join(version)).expect("a new folder");
            fs::write(folder.join(version).join("nodens.toml"), "same length").expect("written");
            symlink(version, folder.join("..data_tmp")).expect("a new link");
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("swapped");
        };
        publish("..2026_01_01");
        let path = folder.join("nodens.toml");
        symlink("..data/nodens.toml", &path).expect("the visible link");
        let mut watch = Watch::new([path.clone()]);
        assert!(report(&mut watch, 3).await.is_empty());
        publish("..2026_01_02");
        fs::remove_dir_all(folder.join("..2026_01_01")).expect("the old one goes");
        assert_eq!(report(&mut watch, 3).await, [path]);
        assert!(report(&mut watch, 3).await.is_empty(), "reported once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_appears_with_its_folder_is_a_change() {
        let folder = Folder::new("appears");
        let path = folder.join("late/hosts");
        let mut watch = Watch::new([path.clone()]);
        assert!(report(&mut watch, 2).await.is_empty());
        fs::create_dir(folder.join("late")).expect("made");
        fs::write(&path, "192.0.2.1 a.example.org").expect("written");
        assert_eq!(report(&mut watch, 3).await, std::slice::from_ref(&path));
        fs::remove_file(&path).expect("there");
        assert!(report(&mut watch, 3).await.is_empty(), "what was read stays in use");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_in_the_middle_of_being_written_is_left_alone() {
        let folder = Folder::new("half");
        let path = folder.join("nodens.toml");
        fs::write(&path, "a").expect("written");
        let mut watch = Watch::new([path.clone()]);
        // Each wait of one interval holds one look, in its middle.
        tokio::time::sleep(INTERVAL / 2).await;
        for len in 2..6 {
            fs::write(&path, "a".repeat(len)).expect("written");
            assert!(report(&mut watch, 1).await.is_empty(), "still growing");
        }
        assert_eq!(report(&mut watch, 2).await, [path]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_loses_no_change() {
        let folder = Folder::new("cancel");
        let path = folder.join("nodens.toml");
        let mut watch = Watch::new([path.clone()]);
        fs::write(&path, "a").expect("written");
        let mut reported = Vec::new();
        for _ in 0..200 {
            let short = INTERVAL / 20;
            reported.extend(tokio::time::timeout(short, watch.changed()).await.unwrap_or_default());
        }
        assert_eq!(reported, [path]);
    }

    #[tokio::test(start_paused = true)]
    async fn following_other_files_keeps_the_memory_of_those_that_stay() {
        let folder = Folder::new("follow");
        let (stays, goes, comes) =
            (folder.join("stays"), folder.join("goes"), folder.join("comes"));
        for path in [&stays, &goes, &comes] {
            fs::write(path, "a").expect("written");
        }
        let mut watch = Watch::new([stays.clone(), goes.clone()]);
        for path in [&stays, &goes, &comes] {
            fs::write(path, "ab").expect("written");
        }
        watch.follow([stays.clone(), comes]);
        assert_eq!(report(&mut watch, 3).await, [stays]);
    }
}
