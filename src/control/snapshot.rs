//! The saved cache on disk: written at intervals and at the end, read at the start.
//!
//! ```text
//!   cache.snapshot          the entries; replaced as a whole (temporary file, fsync, rename, fsync of the folder)
//!   cache.snapshot.purges   purges since the entries were taken, appended before a purge is answered
//!   cache.snapshot.lock     held by the process that writes the two
//! ```
//!
//! Must hold: at every moment the files on disk, read together, hold no entry that an answered purge meant. So the journal is made before
//! the first snapshot and cut only after a newer one is in place; and where a purge cannot be recorded, the snapshot is
//! removed, since a cold start is slow and purged content is wrong. A snapshot without the journal of its lineage is not read.
//!
//! All here blocks and runs on threads of its own ([`off_thread`]); the lock of the numbers alone is taken on the control thread, and held
//! for a copy.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::link::{Export, Exported, LAST_EXPORT, Selector, monotonic_ms};
use crate::base::time::Now;
use crate::cache::object::Object;
use crate::cache::snapshot::{self, Entry, Header, HeaderError, Kind, Purge, Purges, Step};

/// Longest wait for the shards to hand over their entries.
const EXPORT_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked whether they have.
const COLLECT_EVERY: Duration = Duration::from_millis(2);
/// How much is read and written at once.
const CHUNK_BYTES: usize = 1 << 20;
/// A journal that has grown beyond it asks for a new snapshot, which empties it.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;
/// No journal that we write gets near it.
const JOURNAL_READ_BYTES_MAX: u64 = 256 << 20;
/// How nice a thread is that saves while shards serve.
const NICE: libc::c_int = 10;

/// Why there is no new snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{} is locked by another process", .0.display())]
    Locked(PathBuf),
    #[error("shards {0:?} did not hand over their entries in time")]
    Unanswered(Vec<usize>),
    #[error("a purge that cannot be recorded has removed the snapshot meanwhile")]
    Overtaken,
    #[error("no [cache] snapshot is configured")]
    Off,
    #[error("no thread could be started")]
    NoThread,
}

/// A snapshot that was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Saved {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) duration: Duration,
}

/// What metrics say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbers {
    /// When the entries of the snapshot on disk were taken.
    pub(super) saved_unix_ms: Option<u64>,
    pub(super) last: Option<Saved>,
    pub(super) saves: u64,
    pub(super) failures: u64,
    pub(super) loaded: u64,
    pub(super) damaged: u64,
}

/// The state of a save between its beginning and its end.
pub(super) struct Begun {
    header: Header,
    /// Of `Files::spoiled`.
    spoiled: u64,
    at: Instant,
}

/// Where an entry belongs in this process.
pub struct Place {
    pub hash: u64,
    pub route: u16,
    pub owner: usize,
}

/// What a shard starts with: objects with their hits, the most valuable last.
pub type Restored = Vec<(Arc<Object>, u8)>;

/// The saved cache of this process.
pub struct Store {
    path: PathBuf,
    files: Mutex<Files>,
    exports: Mutex<Exports>,
    numbers: Mutex<Numbers>,
    /// Since when saves fail, by `monotonic_ms`, and why the last one did.
    trouble: Mutex<Option<(u64, String)>>,
}

#[derive(Default)]
struct Files {
    /// `None`: not ours.
    lock: Option<File>,
    /// `None`: no snapshot on disk is valid.
    journal: Option<Journal>,
    purge_seq: u64,
    /// How often the snapshot had to be removed because a purge could not be recorded.
    spoiled: u64,
}

struct Journal {
    file: File,
    seed: u32,
    lineage: u64,
    bytes: u64,
    purges: Vec<Numbered>,
}

/// A purge and its number.
type Numbered = (u64, Purge);

struct Exports {
    receiver: Receiver<Export>,
    /// Of shards that have ended.
    last: Vec<Export>,
}

impl Store {
    /// `exports`: what shards send on when they are told to, and when they end.
    #[must_use]
    pub fn new(path: PathBuf, exports: Receiver<Export>) -> Self {
        // A file beyond RLIMIT_FSIZE is an error of the write, like a full disk; not the end of the program.
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        Self {
            path,
            files: Mutex::default(),
            exports: Mutex::new(Exports { receiver: exports, last: Vec::new() }),
            numbers: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Reads what an earlier process saved, for each of `owners` up to `owner_bytes`. Never fails: what cannot be used is left out, with a
    /// line in the log. `place`: where an entry belongs now; `None`: nowhere.
    pub fn load(
        &self,
        owners: usize,
        owner_bytes: u64,
        now: Now,
        place: impl Fn(&Entry<'_>) -> Option<Place>,
    ) -> Vec<Restored> {
        let mut files = lock(&self.files);
        let mut restored: Vec<Restored> = (0..owners).map(|_| Vec::new()).collect();
        let started = Instant::now();
        if let Err(error) = self.take_lock(&mut files) {
            tracing::warn!(%error, "the snapshot is not ours: nothing is saved until it is");
        }
        match self.open(&mut files) {
            Ok(None) => tracing::info!(path = %self.path.display(), "there is no snapshot yet"),
            Ok(Some((file, header, purges))) => {
                let mut loading =
                    Loading { owner_bytes, now, header, purges, place, full: vec![0; owners], left_out: 0 };
                let damaged = loading.run(file, &mut restored);
                let loaded: usize = restored.iter().map(Vec::len).sum();
                let (left_out, took) = (loading.left_out, started.elapsed());
                tracing::info!(loaded, left_out, damaged, ?took, "snapshot loaded");
                if now.unix_ms < header.saved_unix_ms {
                    tracing::warn!(
                        "the wall clock is behind the snapshot's: every entry is validated before it is served"
                    );
                }
                let mut numbers = lock(&self.numbers);
                numbers.saved_unix_ms = Some(header.saved_unix_ms);
                (numbers.loaded, numbers.damaged) = (loaded as u64, damaged);
            }
            Err(why) => tracing::warn!(path = %self.path.display(), %why, "the snapshot is ignored"),
        }
        for entries in &mut restored {
            entries.reverse();
        }
        restored
    }

    pub(super) fn numbers(&self) -> Numbers {
        *lock(&self.numbers)
    }

    /// Before the shards are asked for their entries: what they have seen of purges, and files to write to.
    pub(super) fn begin(&self) -> Result<Begun, SaveError> {
        let mut files = lock(&self.files);
        self.take_lock(&mut files)?;
        if files.journal.is_none() {
            // Whatever snapshot there is, nobody may read it with a journal that is not its own.
            let journal = Journal::create(&self.journal_path(), random(), random_u32(), &[]);
            files.journal = Some(journal.map_err(|error| self.io(self.journal_path(), error))?);
        }
        let lineage = files.journal.as_ref().map_or(0, |journal| journal.lineage);
        let header = Header { seed: random_u32(), lineage, purge_seq: files.purge_seq, saved_unix_ms: 0 };
        Ok(Begun { header, spoiled: files.spoiled, at: Instant::now() })
    }

    /// Takes the entries that the shards hand over under this id, and writes them. `has_ended`: shards of which no more is to be expected.
    /// `in_haste`: nothing is served beside.
    pub(super) fn finish(
        &self,
        begun: Begun,
        id: u64,
        shards: usize,
        has_ended: impl Fn(usize) -> bool,
        in_haste: bool,
    ) -> Result<Saved, SaveError> {
        if !in_haste {
            // SAFETY: takes no pointers. On Linux it is this thread's own niceness that changes.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        }
        let mut entries = self.collect(id, shards, has_ended)?;
        // The most valuable first, so that less memory at the next start keeps them. Stable: variants stay newest first.
        entries.sort_by(|a, b| b.worth.total_cmp(&a.worth));
        let now = now();
        let header = Header { saved_unix_ms: now.unix_ms, ..begun.header };
        let temporary = self.beside(".tmp");
        let written = write_entries(&temporary, &header, entries, now);
        let (count, bytes) = written.map_err(|error| {
            let _ = fs::remove_file(&temporary);
            self.io(temporary.clone(), error)
        })?;
        self.put_in_place(&temporary, &header, begun.spoiled)?;
        let saved = Saved { entries: count, bytes, duration: begun.at.elapsed() };
        let mut numbers = lock(&self.numbers);
        numbers.saved_unix_ms = Some(header.saved_unix_ms);
        numbers.last = Some(saved);
        numbers.saves += 1;
        *lock(&self.trouble) = None;
        Ok(saved)
    }

    pub(super) fn failed(&self, why: &SaveError) {
        lock(&self.numbers).failures += 1;
        // The purge that came between asks for the next save itself.
        if !matches!(why, SaveError::Overtaken) {
            let mut trouble = lock(&self.trouble);
            let since_ms = trouble.as_ref().map_or_else(monotonic_ms, |(since_ms, _)| *since_ms);
            *trouble = Some((since_ms, why.to_string()));
        }
    }

    /// Since when saves fail, by `monotonic_ms`, and why; `None` when the last one did not.
    pub(super) fn trouble(&self) -> Option<(u64, String)> {
        lock(&self.trouble).clone()
    }

    /// Makes sure that what these selectors mean does not come back with the next start; the shards have dropped it already. Returns
    /// whether it is time for a new snapshot.
    pub(super) fn record(&self, selectors: &[Selector]) -> Result<bool, SaveError> {
        let mut files = lock(&self.files);
        let files = &mut *files;
        let Some(journal) = &mut files.journal else {
            // No snapshot of ours is valid; one of another process could be.
            return if self.path.exists() { self.spoil(files).map(|()| true) } else { Ok(false) };
        };
        let purges = selectors.iter().map(|selector| {
            files.purge_seq += 1;
            (files.purge_seq, purge_of(selector))
        });
        match journal.append(purges.collect()) {
            Ok(()) => Ok(journal.bytes > JOURNAL_BYTES_MAX),
            Err(error) => {
                tracing::error!(%error, "a purge cannot be recorded: the snapshot is removed");
                lock(&self.numbers).failures += 1;
                self.spoil(files).map(|()| true)
            }
        }
    }

    /// Removes the snapshot, since it holds what must not come back.
    fn spoil(&self, files: &mut Files) -> Result<(), SaveError> {
        files.spoiled += 1;
        files.journal = None;
        lock(&self.numbers).saved_unix_ms = None;
        // Without its journal the snapshot is not read either: one of the two is enough.
        let removed = [self.path.clone(), self.journal_path()].map(|path| match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.io(path, error)),
            _ => Ok(()),
        });
        let _ = sync_folder(&self.path);
        let [entries, journal] = removed;
        entries.or(journal)
    }

    fn put_in_place(&self, temporary: &Path, header: &Header, spoiled: u64) -> Result<(), SaveError> {
        let mut files = lock(&self.files);
        let path = self.journal_path();
        // Another process that had a purge to record and no lock has removed both files.
        if files.journal.as_ref().is_some_and(|journal| !journal.is_at(&path)) {
            files.journal = None;
        }
        if files.spoiled != spoiled || files.journal.is_none() {
            let _ = fs::remove_file(temporary);
            return Err(SaveError::Overtaken);
        }
        fs::rename(temporary, &self.path).and_then(|()| sync_folder(&self.path)).map_err(|error| {
            let _ = fs::remove_file(temporary);
            self.io(self.path.clone(), error)
        })?;
        let Some(journal) = &mut files.journal else { return Ok(()) };
        if journal.purges.iter().all(|(purge_seq, _)| *purge_seq > header.purge_seq) {
            return Ok(());
        }
        journal.purges.retain(|(purge_seq, _)| *purge_seq > header.purge_seq);
        match Journal::create(&path, journal.lineage, journal.seed, &journal.purges) {
            Ok(shorter) => *journal = shorter,
            // The longer one is as good: what the entries have seen is skipped by its number.
            Err(error) => tracing::warn!(%error, "the purge journal cannot be shortened"),
        }
        Ok(())
    }

    fn collect(&self, id: u64, shards: usize, has_ended: impl Fn(usize) -> bool) -> Result<Vec<Exported>, SaveError> {
        let mut exports = lock(&self.exports);
        let Exports { receiver, last } = &mut *exports;
        let deadline = Instant::now() + EXPORT_WITHIN;
        let mut came: Vec<Export> = Vec::new();
        loop {
            // Looked at first: a shard sends before it says that it has ended.
            let ended: Vec<bool> = (0..shards).map(&has_ended).collect();
            while let Ok(export) = receiver.try_recv() {
                match export.id {
                    LAST_EXPORT => last.push(export),
                    its if its == id => came.push(export),
                    _ => {}
                }
            }
            let has_come = |shard| came.iter().chain(&*last).any(|export| export.shard == shard);
            let missing: Vec<usize> = (0..shards).filter(|&shard| !ended[shard] && !has_come(shard)).collect();
            if missing.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(SaveError::Unanswered(missing));
            }
            std::thread::sleep(COLLECT_EVERY);
        }
        // What a shard hands over at its end is newer than what it handed over before.
        came.retain(|export| last.iter().all(|last| last.shard != export.shard));
        Ok(came.iter().chain(&*last).flat_map(|export| export.entries.iter().cloned()).collect())
    }

    /// The snapshot, where there is one that may be read, with the purges that it has not seen.
    fn open(&self, files: &mut Files) -> Result<Option<(File, Header, Purges)>, Unusable> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        (&mut file).take(Header::BYTES as u64).read_to_end(&mut bytes)?;
        let header = Header::read(Kind::Entries, &bytes)?;
        let (journal_header, purges, whole) = match read_journal(&self.journal_path()) {
            Err(Unusable::Io(error)) if error.kind() == ErrorKind::NotFound => return Err(Unusable::NoJournal),
            read => read?,
        };
        if journal_header.lineage != header.lineage {
            return Err(Unusable::Lineage);
        }
        let seen = purges.iter().map(|(purge_seq, _)| *purge_seq).max();
        files.purge_seq = seen.unwrap_or(0).max(header.purge_seq);
        let mut unseen = Purges::default();
        purges.iter().filter(|(seq, _)| *seq > header.purge_seq).for_each(|(_, purge)| unseen.add(purge.clone()));
        if files.lock.is_some() {
            // A purge that broke off was never answered.
            let file = OpenOptions::new().append(true).open(self.journal_path())?;
            file.set_len(whole)?;
            let (seed, lineage) = (journal_header.seed, journal_header.lineage);
            files.journal = Some(Journal { file, seed, lineage, bytes: whole, purges });
        }
        Ok(Some((file, header, unseen)))
    }

    fn take_lock(&self, files: &mut Files) -> Result<(), SaveError> {
        if files.lock.is_some() {
            return Ok(());
        }
        let path = self.beside(".lock");
        let file = private().create(true).truncate(false).open(&path).map_err(|error| self.io(path.clone(), error))?;
        // SAFETY: takes no pointers, and the descriptor is open during the call.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(SaveError::Locked(path));
        }
        files.lock = Some(file);
        Ok(())
    }

    fn journal_path(&self) -> PathBuf {
        self.beside(".purges")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        beside(&self.path, suffix)
    }

    fn io(&self, path: PathBuf, error: io::Error) -> SaveError {
        SaveError::Io { path, error }
    }
}

/// Why a snapshot is not read.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Header(#[from] HeaderError),
    #[error("the journal of its purges is missing")]
    NoJournal,
    #[error("the journal of its purges belongs to another snapshot")]
    Lineage,
    #[error("the journal of its purges is damaged")]
    Journal,
}

impl Journal {
    /// A new file in the place of whatever there is.
    fn create(path: &Path, lineage: u64, seed: u32, purges: &[Numbered]) -> io::Result<Self> {
        let mut out = Vec::new();
        Header { seed, lineage, purge_seq: 0, saved_unix_ms: 0 }.write(Kind::Purges, &mut out);
        for (purge_seq, purge) in purges {
            snapshot::write_purge(&mut out, seed, *purge_seq, purge);
        }
        let temporary = beside(path, ".tmp");
        let write = || {
            let mut file = private().create(true).truncate(true).open(&temporary)?;
            file.write_all(&out)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            sync_folder(path)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        Ok(Self { file, seed, lineage, bytes: out.len() as u64, purges: purges.to_vec() })
    }

    /// Whether the file at this path is the one that is written to.
    fn is_at(&self, path: &Path) -> bool {
        let id = |meta: io::Result<fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        let own = id(self.file.metadata());
        own.is_some() && own == id(fs::metadata(path))
    }

    fn append(&mut self, purges: Vec<Numbered>) -> io::Result<()> {
        let mut out = Vec::new();
        for (purge_seq, purge) in &purges {
            snapshot::write_purge(&mut out, self.seed, *purge_seq, purge);
        }
        self.file.write_all(&out)?;
        self.file.sync_data()?;
        self.bytes += out.len() as u64;
        self.purges.extend(purges);
        Ok(())
    }
}

/// The header, the purges, and how many bytes hold whole records.
fn read_journal(path: &Path) -> Result<(Header, Vec<Numbered>, u64), Unusable> {
    let mut bytes = Vec::new();
    File::open(path)?.take(JOURNAL_READ_BYTES_MAX).read_to_end(&mut bytes)?;
    let header = Header::read(Kind::Purges, &bytes)?;
    let (mut purges, mut at) = (Vec::new(), Header::BYTES);
    loop {
        match snapshot::step(&bytes[at..], header.seed, true) {
            Step::Record { payload, used } => {
                purges.push(snapshot::read_purge(payload).ok_or(Unusable::Journal)?);
                at += used;
            }
            Step::End | Step::Cut => return Ok((header, purges, at as u64)),
            // It may have been any purge.
            Step::Damaged(_) | Step::More(_) => return Err(Unusable::Journal),
        }
    }
}

/// Writes and syncs a file of these entries; what the cache has let go meanwhile is left out. Returns how many entries and bytes.
fn write_entries(path: &Path, header: &Header, entries: Vec<Exported>, now: Now) -> io::Result<(u64, u64)> {
    let mut file = private().create(true).truncate(true).open(path)?;
    let mut out = Vec::with_capacity(2 * CHUNK_BYTES);
    let (mut count, mut bytes) = (0, 0);
    header.write(Kind::Entries, &mut out);
    for exported in entries {
        let Some(object) = exported.object.upgrade() else { continue };
        count += u64::from(snapshot::write_entry(&mut out, header.seed, &object, exported.hits, now));
        if out.len() >= CHUNK_BYTES {
            bytes += out.len() as u64;
            file.write_all(&out)?;
            out.clear();
            out.shrink_to(2 * CHUNK_BYTES);
        }
    }
    bytes += out.len() as u64;
    file.write_all(&out)?;
    file.sync_all()?;
    Ok((count, bytes))
}

/// One reading of a snapshot.
struct Loading<P> {
    owner_bytes: u64,
    now: Now,
    header: Header,
    purges: Purges,
    place: P,
    /// Bytes that each owner has got.
    full: Vec<u64>,
    /// Purged, useless, without a route, or beyond the memory.
    left_out: u64,
}

impl<P: Fn(&Entry<'_>) -> Option<Place>> Loading<P> {
    /// Reads to the end, or until no owner has room. Returns how many places were damaged.
    fn run(&mut self, file: File, restored: &mut [Restored]) -> u64 {
        let mut window = Window { file, buf: Vec::new(), at: 0, is_last: false };
        let (mut damaged, mut was_damaged) = (0, false);
        loop {
            let is_damaged = match snapshot::step(&window.buf[window.at..], self.header.seed, window.is_last) {
                Step::Record { payload, used } => {
                    let is_sound = match snapshot::read_entry(payload) {
                        Some(entry) => {
                            self.take(entry, restored);
                            true
                        }
                        None => false,
                    };
                    window.at += used;
                    !is_sound
                }
                Step::More(wanted) => {
                    if let Err(error) = window.fill(wanted) {
                        tracing::warn!(%error, "the snapshot cannot be read to its end");
                        return damaged + 1;
                    }
                    continue;
                }
                Step::Damaged(bytes) => {
                    window.at += bytes;
                    true
                }
                Step::Cut => return damaged + u64::from(!was_damaged),
                Step::End => return damaged,
            };
            damaged += u64::from(is_damaged && !was_damaged);
            was_damaged = is_damaged;
            if self.full.iter().all(|bytes| *bytes >= self.owner_bytes) {
                return damaged;
            }
        }
    }

    fn take(&mut self, entry: Entry<'_>, restored: &mut [Restored]) {
        let place = if self.purges.cover(&entry) { None } else { (self.place)(&entry) };
        let hits = entry.hits;
        let taken = place.and_then(|place| {
            // A number that no object made by a shard has.
            let generation = u64::MAX - restored.iter().map(Vec::len).sum::<usize>() as u64;
            let object = entry.into_object(&self.header, self.now, place.hash, place.route, generation)?;
            let bytes = self.full[place.owner] + object.cost_bytes() as u64;
            // Later ones are worth less for each byte, so nothing is put in what is left.
            self.full[place.owner] = bytes;
            (bytes <= self.owner_bytes).then(|| restored[place.owner].push((Arc::new(object), hits)))
        });
        self.left_out += u64::from(taken.is_none());
    }
}

/// A part of a file.
struct Window {
    file: File,
    buf: Vec<u8>,
    at: usize,
    is_last: bool,
}

impl Window {
    /// Has at least so many bytes from `at` on, or all that there are.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        self.buf.drain(..self.at);
        self.at = 0;
        let target = wanted.max(CHUNK_BYTES);
        let missing = target.saturating_sub(self.buf.len()) as u64;
        let read = (&mut self.file).take(missing).read_to_end(&mut self.buf)?;
        self.is_last = (read as u64) < missing;
        Ok(())
    }
}

fn purge_of(selector: &Selector) -> Purge {
    match selector {
        Selector::Url(key) => Purge::Url(key.clone()),
        Selector::Prefix(prefix) => Purge::Prefix(prefix.clone()),
        Selector::Tag(tag) => Purge::Tag(tag.clone()),
    }
}

/// Runs what blocks on a thread of its own; `None` when there is none to be had. It goes on when nobody waits for it any more, and does not
/// keep the process.
pub(super) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("snapshot".to_owned());
    thread
        .spawn(move || {
            let _ = done.send(work());
        })
        .ok()?;
    result.await.ok()
}

/// Files hold keys, which may hold credentials.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes renames and removals last.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn now() -> Now {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    Now { mono_ms: monotonic_ms(), unix_ms }
}

fn random() -> u64 {
    ahash::RandomState::new().hash_one(0)
}

fn random_u32() -> u32 {
    random() as u32
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is complete when it is made, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
