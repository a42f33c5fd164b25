//! Files that hold what was paid for: made for their owner alone, never through a link, by one process at a time, and replaced
//! only whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::engine::error::{Error, Kind};

/// Times that a file is opened anew because another took its name between opening and locking.
const MOST_OPENINGS: usize = 10;

/// A file that is open, locked and appended to.
#[derive(Debug)]
pub(super) struct Held {
    file: File,
    path: PathBuf,
    /// Where its last whole line ends.
    length: u64,
}

/// What could not be appended.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// Bytes of whole lines that stand in the file.
    pub(super) kept: usize,
    /// Why not more.
    pub(super) error: Error,
}

impl Held {
    /// Opens, makes if need be, and locks the file at `path`.
    ///
    /// # Errors
    /// A configuration error if it is a link, no regular file or not writable; a journal error if another process has it.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        for _ in 0..MOST_OPENINGS {
            let file = private().create(true).truncate(false).open(path).map_err(|error| refused(path, error))?;
            let kind = file.metadata().map_err(|error| failed(path, "cannot be looked at", error))?;
            if !kind.is_file() {
                return Err(Error::configuration(format!("{} is no regular file", path.display())));
            }
            lock(&file, path)?;
            // Whoever had it may have put another in its place meanwhile.
            if is_at(&file, path) {
                return Ok(Self { length: kind.len(), file, path: path.to_owned() });
            }
        }
        Err(Error::new(Kind::Journal, format!("{} is replaced as often as it is opened", path.display())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads it from its start.
    pub(super) fn read(&mut self) -> io::Result<impl Read + '_> {
        self.file.seek(SeekFrom::Start(0))?;
        Ok(&mut self.file)
    }

    /// Cuts it to `length` bytes.
    pub(super) fn cut(&mut self, length: u64) -> Result<(), Error> {
        self.file.set_len(length).map_err(|error| failed(&self.path, "cannot be cut", error))?;
        self.length = length;
        Ok(())
    }

    /// Appends whole lines with one write. Of those that do not fit no part is left.
    pub(super) fn append(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        if let Err(error) = self.file.seek(SeekFrom::Start(self.length)) {
            return Err(Unwritten { kept: 0, error: failed(&self.path, "cannot be written", error) });
        }
        let mut written = 0;
        while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(self.step_back(lines, written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.step_back(lines, written, error)),
            }
        }
        self.length += written as u64;
        Ok(())
    }

    /// To the end of the last whole line of what was `written` of `lines`.
    fn step_back(&mut self, lines: &[u8], written: usize, error: io::Error) -> Unwritten {
        let kept = lines.get(..written).and_then(|done| memchr::memrchr(b'\n', done)).map_or(0, |place| place + 1);
        self.length += kept as u64;
        let error = failed(&self.path, "cannot be written", error);
        let error = match self.file.set_len(self.length) {
            Ok(()) => error,
            Err(_) => error.context("a part of a line may be left at its end, which the next run repairs"),
        };
        Unwritten { kept, error }
    }

    /// Brings what was appended to the disk, and looks whether the file is still the one that its name leads to.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(|error| failed(&self.path, "cannot be brought to the disk", error))?;
        if is_at(&self.file, &self.path) { Ok(()) } else { Err(self.gone()) }
    }

    /// Somebody has deleted or moved the file that was written to; if nothing else leads to it, it is saved under another name.
    fn gone(&mut self) -> Error {
        let error = Error::new(
            Kind::Journal,
            format!("{} was deleted, moved or replaced while the run wrote to it", self.path.display()),
        );
        if !is_unlinked(&self.file) {
            return error.advise("What was written is in the file that was moved.");
        }
        let rescue = beside(&self.path, ".rescued");
        match self.save_as(&rescue) {
            Ok(()) => error.context(&format!("all that it held was saved as {}", rescue.display())),
            Err(reason) => {
                error.context(&format!("what it held could not be saved as {} ({reason})", rescue.display()))
            }
        }
    }

    fn save_as(&mut self, path: &Path) -> io::Result<()> {
        let mut copy = private().create_new(true).open(path)?;
        self.file.seek(SeekFrom::Start(0))?;
        io::copy(&mut (&mut self.file).take(self.length), &mut copy)?;
        copy.sync_all()
    }

    /// Puts a new file in its place, with what `pour` writes from its text. A crash leaves the old one or the new one.
    pub(super) fn replace(
        &mut self,
        pour: impl FnOnce(&mut File, &mut dyn Write) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let path = beside(&self.path, ".new");
        // Left by a run that ended in the middle of this; nobody else can be at it, since the lock is ours.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(&path, error)),
            _ => {}
        }
        let file = private().create_new(true).open(&path).map_err(|error| refused(&path, error))?;
        // Locked before it has the name, so that nobody comes between.
        lock(&file, &path)?;
        let cannot = |error| failed(&path, "cannot be written", error);
        self.file.seek(SeekFrom::Start(0)).map_err(cannot)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        let filled = pour(&mut self.file, &mut writer);
        let done = filled.and_then(|()| {
            let file = writer.into_inner().map_err(|error| cannot(error.into_error()))?;
            file.sync_all().map_err(cannot)?;
            fs::rename(&path, &self.path).map_err(cannot)?;
            sync_folder(&self.path);
            Ok(file)
        });
        let file = done.inspect_err(|_| drop(fs::remove_file(&path)))?;
        self.length = file.metadata().map_err(cannot)?.len();
        self.file = file;
        Ok(())
    }
}

/// Appends to the file at `path` what was set aside, and brings it to the disk.
pub(super) fn set_aside(path: &Path, lines: &[u8]) -> Result<(), Error> {
    let cannot = |error| failed(path, "cannot be written", error);
    let mut file = private().create(true).append(true).open(path).map_err(|error| refused(path, error))?;
    file.write_all(lines).and_then(|()| file.sync_all()).map_err(cannot)
}

/// `path` with `ending` behind its name.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Whether both paths lead to one file.
pub(super) fn are_one(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) if one == other => true,
        (Ok(one), Ok(other)) => File::open(one).is_ok_and(|file| is_at(&file, &other)),
        _ => false,
    }
}

/// How files are opened: for their owner alone, and not through a link.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    }
    options
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let text = format!("{} is being written by another run", path.display());
            Err(Error::new(Kind::Journal, text).advise("Wait for it to end, or write to another file."))
        }
        // Some network drives know no locks; they are no reason to refuse the work.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::Error(error)) => Err(failed(path, "cannot be locked", error)),
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(here), Ok(there)) => (here.dev(), here.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(unix)]
fn is_unlinked(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|known| known.nlink() == 0)
}

#[cfg(not(unix))]
fn is_unlinked(_file: &File) -> bool {
    false
}

/// A new name is on the disk once its folder is.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

fn refused(path: &Path, error: io::Error) -> Error {
    if fs::symlink_metadata(path).is_ok_and(|known| known.is_symlink()) {
        let text = format!("{} is a symbolic link, and results are not written through one", path.display());
        return Error::configuration(text).advise("Name the file that it leads to.");
    }
    Error::configuration(format!("{} cannot be opened for writing: {error}", path.display())).with_source(error)
}

/// The error of a file that was in order before.
pub(super) fn failed(path: &Path, what: &str, error: io::Error) -> Error {
    Error::new(Kind::Journal, format!("{} {what}: {error}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::jobs::folder::Folder;

    #[test]
    fn one_file_has_one_writer_also_after_it_was_replaced() {
        let folder = Folder::new();
        let path = folder.path("out");
        let mut held = Held::open(&path).unwrap();
        held.append(b"old\n").unwrap();
        assert_eq!(Held::open(&path).unwrap_err().kind(), Kind::Journal);
        held.replace(|_, new| new.write_all(b"new\n").map_err(|error| failed(Path::new("x"), "x", error))).unwrap();
        assert!(Held::open(&path).unwrap_err().to_string().contains("another run"));
        held.append(b"more\n").unwrap();
        held.sync().unwrap();
        drop(held);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\nmore\n");
        assert_eq!(Held::open(&path).unwrap().length(), 9);
        assert!(!beside(&path, ".new").exists());
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let folder = Folder::new();
        let path = folder.path("out");
        let mut held = Held::open(&path).unwrap();
        held.append(b"old\n").unwrap();
        held.replace(|_, _| Err(Error::internal("no"))).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\n");
        assert!(!beside(&path, ".new").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_its_owners_and_never_behind_a_link() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let path = folder.path("out");
        drop(Held::open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let link = folder.path("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Held::open(&link).unwrap_err().to_string().contains("symbolic link"));
        assert_eq!(Held::open(Path::new("/dev/null")).unwrap_err().kind(), Kind::Configuration);
        assert!(are_one(&path, &link));
    }

    #[cfg(unix)]
    #[test]
    fn what_a_deleted_file_held_is_saved_and_what_a_moved_one_holds_is_named() {
        let folder = Folder::new();
        let path = folder.path("out");
        let mut held = Held::open(&path).unwrap();
        held.append(b"paid\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(held.sync().unwrap_err().to_string().contains(".rescued"));
        assert_eq!(fs::read_to_string(beside(&path, ".rescued")).unwrap(), "paid\n");

        let mut held = Held::open(&path).unwrap();
        fs::rename(&path, folder.path("elsewhere")).unwrap();
        assert!(held.sync().unwrap_err().to_string().contains("moved"));
    }
}
