//! Files that someone else may have made, files that are written, and temporary files of this crate. Nothing else renames a
//! file; `clippy.toml` says so.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// Start and end of the names of temporary files and folders, so that they can be told from files of others.
const TEMPORARY: (&str, &str) = (".candlepower-", ".tmp");

/// A builder of temporary files and folders that will be kept. They get `mode` less the umask, because the default permits
/// only the owner.
pub fn temporary_that_stays(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Returns whether the last part of a path is the name of a temporary file or folder of this crate. A process that was
/// killed leaves them behind.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Removes what reports that were killed left in a folder: temporary folders that no process holds, see [`hold`].
pub fn remove_abandoned(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for left in entries.filter(|path| is_temporary(path) && path.is_dir() && !path.is_symlink()) {
        if hold(&left).is_some() {
            let _ = fs::remove_dir_all(&left);
        }
    }
}

/// Locks a folder for as long as the result lives, and the process. `None` if another process holds it, or the system locks no
/// folders.
pub fn hold(folder: &Path) -> Option<File> {
    File::open(folder).ok().filter(|opened| opened.try_lock().is_ok())
}

/// Checks that a folder exists or can be created, and that it has room for a file of 64 KiB.
///
/// # Errors
/// When it does not.
pub fn check_room(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempfile_in(folder)?;
    file.write_all(&[0; 1 << 16])?;
    file.as_file().sync_data()
}

/// What a path leads to, for a writer.
#[derive(Debug, PartialEq)]
enum Place {
    Stdout,
    /// A device, a FIFO, or a file that a process has open: it is written to as it is.
    Special(PathBuf),
    /// A regular file, or one that is missing. Links are followed.
    Regular(PathBuf),
}

impl Place {
    /// Names of standard output.
    const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

    /// Longest chain of links, as in Linux.
    const LINKS_MAX: usize = 40;

    fn of(path: &Path) -> io::Result<Self> {
        if Self::STDOUT.iter().any(|name| path == Path::new(name)) {
            return Ok(Self::Stdout);
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder")),
            Ok(metadata) if !metadata.is_file() => return Ok(Self::Special(path.to_owned())),
            _ => {}
        }
        let mut path = path.to_owned();
        for _ in 0..Self::LINKS_MAX {
            let Ok(to) = fs::read_link(&path) else { return Ok(Self::Regular(path)) };
            if path.starts_with("/proc") {
                return Ok(Self::Special(path));
            }
            path = folder_of(&path).join(to);
        }
        Err(io::Error::new(ErrorKind::InvalidInput, "its links lead nowhere"))
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that a file can be written, before the work whose result it will hold.
///
/// # Errors
/// When it is a folder, or its folder does not exist or cannot be written to.
pub fn check_target(path: &Path) -> io::Result<()> {
    let Place::Regular(path) = Place::of(path)? else { return Ok(()) };
    tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempfile_in(folder_of(&path)).map(drop)
}

/// A file that is being written. A regular file gets its new content when that is complete, and keeps its mode and owner. Devices,
/// FIFOs and standard output, which `-` names, get it at once.
pub struct Target(Writer);

enum Writer {
    Direct(Box<dyn Write>),
    Replacing { path: PathBuf, new: NamedTempFile },
}

impl Target {
    /// Begins to write.
    ///
    /// # Errors
    /// When the file is a folder, or it or its folder cannot be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(match Place::of(path)? {
            Place::Stdout => Writer::Direct(Box::new(io::stdout())),
            Place::Special(path) => Writer::Direct(Box::new(OpenOptions::new().append(true).open(path)?)),
            Place::Regular(path) => {
                let new = temporary_that_stays(0o666).tempfile_in(folder_of(&path))?;
                Writer::Replacing { path, new }
            }
        }))
    }

    /// Gives the file its content.
    ///
    /// # Errors
    /// When it cannot be written.
    #[expect(clippy::disallowed_methods, reason = "the one place that replaces files")]
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let Writer::Replacing { path, new } = self.0 else { return Ok(()) };
        match fs::metadata(&path) {
            // Only the file itself has an owner that this process may not give to another.
            Ok(old) if inherit(new.as_file(), &old).is_err() => {
                let mut to = OpenOptions::new().write(true).truncate(true).open(&path)?;
                io::copy(&mut new.reopen()?, &mut to).map(drop)
            }
            _ => new.persist(&path).map(drop).map_err(Into::into),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Writer::Direct(to) => unless_closed(to.write(bytes), bytes.len()),
            Writer::Replacing { new, .. } => new.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Writer::Direct(to) => unless_closed(to.flush(), ()),
            Writer::Replacing { new, .. } => new.flush(),
        }
    }
}

/// The reader of a pipe may close it, as `head` does.
fn unless_closed<T>(written: io::Result<T>, all: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(all),
        written => written,
    }
}

/// Gives a new file the owner and the mode of the one that it replaces.
#[cfg(unix)]
fn inherit(new: &File, old: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let own = new.metadata()?;
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        fchown(new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(old.permissions())
}

#[cfg(not(unix))]
fn inherit(new: &File, old: &fs::Metadata) -> io::Result<()> {
    new.set_permissions(old.permissions())
}

/// Writes a file as [`Target`] does.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut target = Target::create(path)?;
    target.write_all(content)?;
    target.finish()
}

/// Gives a complete file or folder of this crate its name. A link of that name is replaced, not followed.
///
/// # Errors
/// When its folder cannot be written to.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Largest settings file or list of benchmarks: a person writes those.
pub const SETTINGS_MAX_BYTES: u64 = 1 << 20;

/// Reads a regular file of at most `max_bytes`. A FIFO, a device or a folder is refused before it is opened, because
/// opening a FIFO waits for a writer and a device may never end.
///
/// # Errors
/// When the file is missing, is not a regular file, is larger, or can't be read.
pub fn read_limited(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut content = Vec::new();
    if metadata.len() <= max_bytes {
        // One byte more shows that a file grew meanwhile, or did not tell its size.
        File::open(path)?.take(max_bytes + 1).read_to_end(&mut content)?;
    }
    if metadata.len().max(content.len() as u64) > max_bytes {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {max_bytes} bytes")));
    }
    Ok(content)
}

/// Reads a text of at most `max_bytes`.
///
/// # Errors
/// When the file is missing, is not a regular file, is larger, is not UTF-8, or can't be read.
pub fn read_text_limited(path: &Path, max_bytes: u64) -> io::Result<String> {
    let content = read_limited(path, max_bytes)?;
    String::from_utf8(content).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Reads a key from a file: its text without the spaces around it, and without the byte order mark that some editors write.
///
/// # Errors
/// As [`read_text_limited`].
pub fn read_key(path: &Path) -> io::Result<String> {
    let text = read_text_limited(path, SETTINGS_MAX_BYTES)?;
    Ok(text.trim_start_matches('\u{feff}').trim().to_owned())
}

/// Largest line of a file of records. One record has a few kilobytes, and at most a few numbers for each sample.
pub const LINE_MAX_BYTES: u64 = 64 << 20;

/// Appends the next line, of at most `max_bytes` with its line break, to `line`. Returns its bytes; 0 is the end of the file. The
/// last line may lack the line break.
///
/// # Errors
/// When the line is longer, or cannot be read.
pub fn read_line_limited(reader: &mut impl BufRead, line: &mut Vec<u8>, max_bytes: u64) -> io::Result<usize> {
    let bytes = reader.take(max_bytes + 1).read_until(b'\n', line)?;
    if bytes as u64 > max_bytes {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("a line is longer than {max_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_no_spaces_and_no_mark_around_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for content in ["key", " key\r\n", "\u{feff}key\n", "\u{feff} key"] {
            fs::write(file.path(), content).expect("written");
            assert_eq!(read_key(file.path()).expect("read"), "key", "{content:?}");
        }
    }

    #[test]
    fn lines_are_read_up_to_the_limit() {
        let (mut reader, mut line) = (&b"ab\ncdef\ng"[..], Vec::new());
        assert_eq!((read_line_limited(&mut reader, &mut line, 5).expect("a line"), line.as_slice()), (3, &b"ab\n"[..]));
        assert_eq!(read_line_limited(&mut reader, &mut line, 5).expect("a line of five bytes"), 5);
        assert_eq!(read_line_limited(&mut reader, &mut line, 5).expect("the last line"), 1);
        assert_eq!((read_line_limited(&mut reader, &mut line, 5).expect("the end"), line.len()), (0, 9));
        let error = read_line_limited(&mut &b"cdefg\n"[..], &mut line, 5).expect_err("six bytes").to_string();
        assert!(error.contains("longer than 5 bytes"), "{error}");
    }

    /// Every kind of target, each with what must hold after a second result was written to it.
    #[test]
    #[cfg(unix)]
    fn targets_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("own"), "old").expect("written");
        fs::set_permissions(at("own"), fs::Permissions::from_mode(0o640)).expect("a mode");
        // Only the superuser can give a file away.
        let is_given = std::os::unix::fs::chown(at("own"), Some(1), Some(1)).is_ok();
        for (link, to) in [("relative", "own"), ("chain", "relative"), ("dangling", "new"), ("loop", "loop")] {
            symlink(to, at(link)).expect("a link");
        }
        for (target, file) in [("own", "own"), ("relative", "own"), ("chain", "own"), ("dangling", "new")] {
            for content in ["one", "another"] {
                write_whole(&at(target), content.as_bytes()).expect(target);
                assert_eq!(fs::read_to_string(at(file)).expect("read"), content);
            }
            assert_eq!(at(target).is_symlink(), target != file, "{target}");
        }
        let kept = fs::metadata(at("own")).expect("a file");
        assert_eq!((kept.mode() & 0o777, kept.uid() == 1), (0o640, is_given));
        assert!(write_whole(&at("loop"), b"").is_err() && at("loop").is_symlink());

        let fifo = at("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).expect("read")
        });
        write_whole(&fifo, b"through").expect("a FIFO");
        assert_eq!(reader.join().expect("a reader"), b"through");
        assert!(fs::metadata(&fifo).expect("a FIFO").file_type().is_fifo());

        // A copy of the full device: the device itself belongs to everybody.
        let full = at("full");
        let made = std::process::Command::new("mknod").arg(&full).args(["c", "1", "7"]).status();
        match OpenOptions::new().write(true).open(&full) {
            Ok(_) if made.is_ok_and(|status| status.success()) => {
                let error = write_whole(&full, b"much").expect_err("full").to_string();
                assert!(error.contains("No space left"), "{error}");
                assert!(fs::metadata(&full).expect("a device").file_type().is_char_device());
            }
            _ => println!("skipped: this user makes no devices"),
        }
        for (path, place) in [
            ("-", Place::Stdout),
            ("/dev/stdout", Place::Stdout),
            ("/dev/null", Place::Special("/dev/null".into())),
            ("./-", Place::Regular("./-".into())),
        ] {
            assert_eq!(Place::of(Path::new(path)).expect(path), place);
        }
        assert!(fs::read_dir(&folder).expect("a folder").flatten().all(|entry| !is_temporary(&entry.path())));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn folders_of_processes_that_ended_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("a folder");
            path
        };
        let (held, left, foreign) = (made(".candlepower-a.tmp"), made(".candlepower-b.tmp"), made("c.tmp"));
        let lock = hold(&held).expect("a lock");
        remove_abandoned(folder.path());
        assert_eq!([&held, &left, &foreign].map(|path| path.exists()), [true, false, true]);
        drop(lock);
        // A process that another test is starting has the lock until it runs its program.
        let is_removed = |_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            remove_abandoned(folder.path());
            !held.exists()
        };
        assert!((0..200).any(is_removed));
    }

    #[test]
    fn a_result_can_be_written_to_a_folder_that_exists() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("result.json");
        check_target(&file).expect("new");
        fs::write(&file, "old").expect("written");
        check_target(&file).expect("old");
        assert_eq!(fs::read(&file).expect("read"), b"old");
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 1, "nothing is left behind");
        for path in [".", "none/result.json"] {
            assert!(check_target(&folder.path().join(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, [0xff; 10]).expect("written");
        assert_eq!(read_limited(&file, 10).expect("read").len(), 10);
        for (path, max_bytes, part) in [
            (file.as_path(), 9, "larger than 9 bytes"),
            (folder.path(), 10, "not a regular file"),
            (Path::new("/dev/zero"), 10, "not a regular file"),
        ] {
            let error = read_limited(path, max_bytes).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(read_text_limited(&file, 10).expect_err("bytes").to_string().contains("UTF-8"));
        let missing = read_limited(&folder.path().join("none"), 1).expect_err("none");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
