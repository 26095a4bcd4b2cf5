//! Files that someone else may have made, and temporary files of this crate.

use std::{
    fs::{self, File},
    io::{self, BufRead, ErrorKind, Read, Write},
    path::Path,
};

/// Start and end of the names of temporary files and folders, so that they can be told from files of others.
const TEMPORARY: (&str, &str) = (".candlepower-", ".tmp");

/// A builder of temporary files and folders that will be kept. They get `mode` less the umask, because the default permits
/// only the owner.
pub(crate) fn temporary_that_stays(mode: u32) -> tempfile::Builder<'static, 'static> {
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
pub(crate) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Checks that a folder exists or can be created, and that it has room for a file of 64 KiB.
///
/// # Errors
/// When it does not.
pub(crate) fn check_room(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempfile_in(folder)?;
    file.write_all(&[0; 1 << 16])?;
    file.as_file().sync_data()
}

/// Checks that a file can be created, or replaced by another one, before the work whose result it will hold.
///
/// # Errors
/// When its folder does not exist or cannot be written to, or when there is something else than a regular file.
pub(crate) fn check_replaceable(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempfile_in(folder).map(drop)
}

/// Largest settings file or list of benchmarks: a person writes those.
pub(crate) const SETTINGS_MAX_BYTES: u64 = 1 << 20;

/// Reads a regular file of at most `max_bytes`. A FIFO, a device or a folder is refused before it is opened, because
/// opening a FIFO waits for a writer and a device may never end.
///
/// # Errors
/// When the file is missing, is not a regular file, is larger, or can't be read.
pub(crate) fn read_limited(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
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
pub(crate) fn read_text_limited(path: &Path, max_bytes: u64) -> io::Result<String> {
    let content = read_limited(path, max_bytes)?;
    String::from_utf8(content).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Largest line of a file of records. One record has a few kilobytes, and at most a few numbers for each sample.
pub(crate) const LINE_MAX_BYTES: u64 = 64 << 20;

/// Appends the next line, of at most `max_bytes` with its line break, to `line`. Returns its bytes; 0 is the end of the file. The
/// last line may lack the line break.
///
/// # Errors
/// When the line is longer, or cannot be read.
pub(crate) fn read_line_limited(reader: &mut impl BufRead, line: &mut Vec<u8>, max_bytes: u64) -> io::Result<usize> {
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
    fn lines_are_read_up_to_the_limit() {
        let (mut reader, mut line) = (&b"ab\ncdef\ng"[..], Vec::new());
        assert_eq!((read_line_limited(&mut reader, &mut line, 5).expect("a line"), line.as_slice()), (3, &b"ab\n"[..]));
        assert_eq!(read_line_limited(&mut reader, &mut line, 5).expect("a line of five bytes"), 5);
        assert_eq!(read_line_limited(&mut reader, &mut line, 5).expect("the last line"), 1);
        assert_eq!((read_line_limited(&mut reader, &mut line, 5).expect("the end"), line.len()), (0, 9));
        let error = read_line_limited(&mut &b"cdefg\n"[..], &mut line, 5).expect_err("six bytes").to_string();
        assert!(error.contains("longer than 5 bytes"), "{error}");
    }

    #[test]
    fn a_result_can_be_written_to_a_folder_that_exists() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("result.json");
        check_replaceable(&file).expect("new");
        fs::write(&file, "old").expect("written");
        check_replaceable(&file).expect("old");
        assert_eq!(fs::read(&file).expect("read"), b"old");
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 1, "nothing is left behind");
        for path in ["/dev/null", ".", "none/result.json"] {
            assert!(check_replaceable(&folder.path().join(path)).is_err(), "{path}");
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
