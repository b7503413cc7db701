//! What the store asks of a disk: one directory of files. The real one is here; the tests bring
//! one that fails and forgets (`testing.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory.
pub trait Disk: Send + Sync {
    /// The names of the files in it.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file to read and write.
    fn open(&self, name: &str) -> io::Result<SharedFile>;
    /// Makes a new file, empty.
    fn create(&self, name: &str) -> io::Result<SharedFile>;
    /// Gives a file another name; one that has it already goes.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file out.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names survive a loss of power.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file.
pub trait DiskFile: Send + Sync {
    /// Writes both parts one after the other and says how much was taken, as `pwritev` does.
    fn write_at(&self, offset: u64, parts: [&[u8]; 2]) -> io::Result<usize>;
    /// Reads, as `pread` does.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes the content survive a loss of power.
    fn sync(&self) -> io::Result<()>;
    /// Cuts it, or makes it longer by zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Its length.
    fn size(&self) -> io::Result<u64>;
}

/// A file, shared.
pub type SharedFile = Arc<dyn DiskFile>;

/// Writes everything, however many calls it takes.
pub(super) fn write_all(
    file: &dyn DiskFile,
    mut offset: u64,
    mut parts: [&[u8]; 2],
) -> io::Result<()> {
    while !(parts[0].is_empty() && parts[1].is_empty()) {
        let taken = match file.write_at(offset, parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let first = taken.min(parts[0].len());
        parts = [&parts[0][first..], &parts[1][taken - first..]];
        offset += taken as u64;
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends, and says how much that was.
pub(super) fn read_up_to(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(offset + filled as u64, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A directory of the file system.
pub(super) struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, name: &str) -> io::Result<SharedFile> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<SharedFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options.mode(0o600).open(self.path(name))?; // what is in it is nobody else's
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, parts: [&[u8]; 2]) -> io::Result<usize> {
        let parts = parts.map(IoSlice::new);
        Ok(rustix::io::pwritev(&self.0, &parts, offset)?)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
