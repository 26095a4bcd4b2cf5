//! The page cache of Linux, which holds files that were read before.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};

/// Asks the kernel to forget the pages of a file, so that the next reader gets them from storage. A file system whose files
/// are always in memory does not follow.
///
/// # Errors
/// When the file cannot be opened, or the system has no such advice.
#[cfg(target_os = "linux")]
pub fn forget(file: &Path) -> io::Result<()> {
    let file = fs::File::open(file)?;
    // Pages that are not yet on storage are kept.
    file.sync_data()?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Other systems keep the files that were read.
#[cfg(not(target_os = "linux"))]
pub(crate) fn forget(_: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Bytes that storage has delivered to this process since it started.
///
/// # Errors
/// When the system does not report them.
pub fn storage_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io").context("/proc/self/io, which counts reads, cannot be read")?;
    let count = text.lines().find_map(|line| line.strip_prefix("read_bytes:")?.trim().parse().ok());
    count.context("/proc/self/io has no read_bytes")
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn a_forgotten_file_has_the_same_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; 1 << 20]).expect("written");
        super::forget(&file).expect("forgotten");
        assert!(std::fs::read(&file).expect("read").iter().all(|byte| *byte == 7));
        assert!(super::forget(&folder.path().join("none")).is_err());
        super::storage_bytes().expect("Linux counts them");
    }
}
