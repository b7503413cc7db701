//! A disk in memory that fails when told to, and forgets on [`SimDisk::crash`] what was not
//! synced. For tests only.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, DiskFile, SharedFile};

/// What a power failure can tear apart.
const SECTOR: usize = 512;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails, and of a sync nobody knows what it did: nothing.
    Error,
    /// A write takes half of what it was given; another operation fails.
    Short,
    /// There is no space left.
    NoSpace,
}

/// See the module.
#[derive(Default)]
pub struct SimDisk {
    sim: Arc<Mutex<Sim>>,
}

#[derive(Default)]
struct Sim {
    names: BTreeMap<String, u64>,
    /// The names that survive.
    lasting: BTreeMap<String, u64>,
    /// What was done to the names since they were synced.
    changes: Vec<Change>,
    files: HashMap<u64, SimFile>,
    next_file: u64,
    /// Crashes so far: handles from before a crash are dead.
    epoch: u64,
    operations: u64,
    /// From when on what goes wrong, and whether it goes on.
    fault: Option<(u64, Fault, bool)>,
    limit: Option<u64>,
    syncs: u64,
    before_read: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone)]
enum Change {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Default, Clone)]
struct SimFile {
    content: Vec<u8>,
    lasting: Vec<u8>,
    /// Written since the last sync, and the lengths set.
    dirty: Vec<Dirty>,
}

#[derive(Clone)]
enum Dirty {
    Bytes(usize, usize),
    Length(usize),
}

impl SimDisk {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The `nth` operation that changes something from now on, counted from 0, goes wrong; with
    /// `for_good` all later ones too.
    pub fn fail(&self, nth: u64, fault: Fault, for_good: bool) {
        let mut sim = self.lock();
        sim.fault = Some((sim.operations + nth, fault, for_good));
    }

    /// Nothing goes wrong any more.
    pub fn repair(&self) {
        self.lock().fault = None;
    }

    /// Operations so far that changed something.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Files that were synced so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// It holds so many bytes.
    pub fn limit(&self, bytes: Option<u64>) {
        self.lock().limit = bytes;
    }

    /// This is done just before something is read next.
    pub fn before_read(&self, run: impl FnOnce() + Send + 'static) {
        self.lock().before_read = Some(Box::new(run));
    }

    /// Bytes in all files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// What a file holds.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let sim = self.lock();
        Some(sim.files[sim.names.get(name)?].content.clone())
    }

    /// Replaces what a file holds, as if it had always been so. Makes the file if there is none.
    pub fn set_content(&self, name: &str, content: Vec<u8>) {
        let mut sim = self.lock();
        let number = sim.names.get(name).copied().unwrap_or_else(|| sim.link(name));
        sim.lasting.insert(name.to_owned(), number);
        let lasting = content.clone();
        sim.files.insert(number, SimFile { content, lasting, dirty: Vec::new() });
    }

    /// The power fails: what was not synced is gone. With a seed, some of it is not, as it
    /// happens.
    pub fn crash(&self, seed: Option<u64>) {
        let mut sim = self.lock();
        sim.epoch += 1;
        sim.fault = None;
        let mut random = seed.map(|seed| Random(seed | 1));
        let mut keeps = || random.as_mut().is_some_and(|random| random.next() & 1 == 0);
        for change in std::mem::take(&mut sim.changes) {
            if keeps() {
                change.apply(&mut sim.lasting);
            }
        }
        sim.names = sim.lasting.clone();
        for file in sim.files.values_mut() {
            for dirty in std::mem::take(&mut file.dirty) {
                file.make_last(&dirty, &mut keeps);
            }
            file.content.clone_from(&file.lasting);
        }
    }

    /// The process is killed: what it wrote is still there, synced or not.
    pub fn kill(&self) {
        let mut sim = self.lock();
        sim.epoch += 1;
        sim.fault = None;
    }

    /// A copy of it as it stands.
    pub fn copy(&self) -> Arc<Self> {
        let sim = self.lock();
        let copy = Sim {
            names: sim.names.clone(),
            lasting: sim.lasting.clone(),
            changes: sim.changes.clone(),
            files: sim.files.clone(),
            ..Sim { next_file: sim.next_file, limit: sim.limit, ..Sim::default() }
        };
        Arc::new(Self { sim: Arc::new(Mutex::new(copy)) })
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, sim: &Sim, number: u64) -> SharedFile {
        Arc::new(Handle { sim: Arc::clone(&self.sim), number, epoch: sim.epoch })
    }
}

impl Sim {
    fn link(&mut self, name: &str) -> u64 {
        self.next_file += 1;
        self.names.insert(name.to_owned(), self.next_file);
        self.next_file
    }

    fn used(&self) -> u64 {
        self.names.values().map(|number| self.files[number].content.len() as u64).sum()
    }

    /// Counts an operation, and says what goes wrong with it.
    fn operate(&mut self) -> Option<Fault> {
        let now = self.operations;
        self.operations += 1;
        let (at, fault, for_good) = self.fault?;
        (now == at || for_good && now > at).then_some(fault)
    }

    fn operate_whole(&mut self) -> io::Result<()> {
        match self.operate() {
            None => Ok(()),
            Some(Fault::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Error | Fault::Short) => Err(io::Error::other("simulated")),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link(name, number) => {
                names.insert(name.clone(), *number);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(number) = names.remove(from) {
                    names.insert(to.clone(), number);
                }
            }
        }
    }
}

impl SimFile {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[offset..end].copy_from_slice(bytes);
        self.dirty.push(Dirty::Bytes(offset, end));
    }

    /// Of what was changed, what `keeps` says survives, sector by sector.
    fn make_last(&mut self, dirty: &Dirty, keeps: &mut dyn FnMut() -> bool) {
        match *dirty {
            Dirty::Bytes(start, end) => {
                let end = end.min(self.content.len());
                let mut at = start;
                while at < end {
                    let next = end.min((at / SECTOR + 1) * SECTOR);
                    if keeps() {
                        if self.lasting.len() < next {
                            self.lasting.resize(next, 0);
                        }
                        self.lasting[at..next].copy_from_slice(&self.content[at..next]);
                    }
                    at = next;
                }
            }
            Dirty::Length(length) => {
                if keeps() {
                    self.lasting.resize(length, 0);
                }
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<SharedFile> {
        let sim = self.lock();
        let number = *sim.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&sim, number))
    }

    fn create(&self, name: &str) -> io::Result<SharedFile> {
        let mut sim = self.lock();
        sim.operate_whole()?;
        if sim.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = sim.link(name);
        sim.changes.push(Change::Link(name.to_owned(), number));
        sim.files.insert(number, SimFile::default());
        Ok(self.handle(&sim, number))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut sim = self.lock();
        sim.operate_whole()?;
        if !sim.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        sim.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut sim = self.lock();
        sim.operate_whole()?;
        if !sim.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        sim.change(Change::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut sim = self.lock();
        sim.operate_whole()?;
        sim.lasting = sim.names.clone();
        sim.changes.clear();
        Ok(())
    }
}

struct Handle {
    sim: Arc<Mutex<Sim>>,
    number: u64,
    epoch: u64,
}

impl Handle {
    fn lock(&self) -> io::Result<MutexGuard<'_, Sim>> {
        let sim = self.sim.lock().unwrap_or_else(PoisonError::into_inner);
        if sim.epoch == self.epoch { Ok(sim) } else { Err(io::Error::other("crashed")) }
    }
}

impl DiskFile for Handle {
    fn write_at(&self, offset: u64, parts: [&[u8]; 2]) -> io::Result<usize> {
        let mut sim = self.lock()?;
        let mut bytes = parts.concat();
        match sim.operate() {
            None => {}
            Some(Fault::Short) => bytes.truncate(bytes.len() / 2),
            Some(Fault::Error) => return Err(io::Error::other("simulated")),
            Some(Fault::NoSpace) => return Err(io::ErrorKind::StorageFull.into()),
        }
        let room = sim.limit.map_or(u64::MAX, |limit| limit.saturating_sub(sim.used()));
        let file = sim.files.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let longest = (file.content.len() as u64).saturating_add(room).saturating_sub(offset);
        bytes.truncate(usize::try_from(longest).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write(offset as usize, &bytes);
        Ok(bytes.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let before = self.lock()?.before_read.take();
        if let Some(run) = before {
            run();
        }
        let sim = self.lock()?;
        let content = &sim.files[&self.number].content;
        let start = content.len().min(offset as usize);
        let count = buffer.len().min(content.len() - start);
        buffer[..count].copy_from_slice(&content[start..start + count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        let mut sim = self.lock()?;
        let result = sim.operate_whole();
        sim.syncs += 1;
        let file = sim.files.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        // After an error the kernel takes the pages for clean: a later sync does nothing for them.
        let dirty = std::mem::take(&mut file.dirty);
        if result.is_ok() {
            for dirty in dirty {
                file.make_last(&dirty, &mut || true);
            }
        }
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut sim = self.lock()?;
        sim.operate_whole()?;
        let file = sim.files.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        file.content.resize(len as usize, 0);
        file.dirty.push(Dirty::Length(len as usize));
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.lock()?.files[&self.number].content.len() as u64)
    }
}

/// Numbers that look random.
pub struct Random(pub u64);

impl Random {
    /// The next one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
