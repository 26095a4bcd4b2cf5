//! Memory of a process and of all processes that it starts, as Linux reports it in `/proc`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

/// A process and its descendants. A descendant that was once seen stays one, even if its parent ends before it.
pub struct Tree {
    proc: PathBuf,
    root: u32,
    /// Id and start time of each process that was seen. Linux gives the id of a process that ended to a new one.
    members: BTreeMap<u32, u64>,
    largest: Option<Largest>,
}

/// The memory of a tree at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resident {
    /// Processes of the tree that have memory.
    pub processes: u64,
    /// Sum of their resident sets. A page that processes share counts in each of them.
    pub bytes: u64,
}

/// The process of a tree whose resident set was the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Largest {
    /// Name of the process, at most 15 bytes.
    pub name: String,
    /// The kernel's high-water mark of its resident set.
    pub peak_bytes: u64,
}

impl Tree {
    /// The tree of a process.
    ///
    /// # Errors
    /// Returns an error where the system has no `/proc` as Linux has it.
    pub fn of(root: u32) -> Result<Self> {
        Self::below(Path::new("/proc"), root)
    }

    fn below(proc: &Path, root: u32) -> Result<Self> {
        let is_linux = proc.join("self").join("stat").exists();
        ensure!(is_linux, "the memory of processes is read from /proc, which this system does not have");
        Ok(Self { proc: proc.to_owned(), root, members: BTreeMap::new(), largest: None })
    }

    /// Looks at the memory of the processes that run now.
    pub fn look(&mut self) -> Resident {
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let running: BTreeMap<u32, Stat> =
            ids.filter_map(|id: u32| Some((id, Stat::read(&self.proc.join(id.to_string()))?))).collect();
        self.members.retain(|id, start| running.get(id).is_some_and(|stat| stat.start == *start));
        self.members.extend(running.get(&self.root).map(|stat| (self.root, stat.start)));
        // A child may have a lower id than its parent, so one pass may not find all.
        loop {
            let is_new =
                |(id, stat): &(&u32, &Stat)| !self.members.contains_key(*id) && self.members.contains_key(&stat.parent);
            let found: Vec<(u32, u64)> = running.iter().filter(is_new).map(|(id, stat)| (*id, stat.start)).collect();
            if found.is_empty() {
                break;
            }
            self.members.extend(found);
        }
        let mut sum = Resident::default();
        for id in self.members.keys() {
            // A process that has ended has no memory, and neither has a thread of the kernel.
            let Some((bytes, peak_bytes)) = memory(&self.proc.join(id.to_string())) else { continue };
            sum.processes += 1;
            sum.bytes += bytes;
            if self.largest.as_ref().is_none_or(|largest| largest.peak_bytes < peak_bytes) {
                self.largest = Some(Largest { name: running[id].name.clone(), peak_bytes });
            }
        }
        sum
    }

    /// The process with the largest resident set in all looks.
    pub fn largest(&self) -> Option<&Largest> {
        self.largest.as_ref()
    }
}

/// Fields of the file `stat` of a process.
struct Stat {
    name: String,
    parent: u32,
    group: u32,
    /// The process group that the terminal of the process is for.
    foreground: i64,
    /// Time at which the process started, since the machine did.
    start: u64,
}

impl Stat {
    fn read(process: &Path) -> Option<Self> {
        let bytes = fs::read(process.join("stat")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        // The name is in parentheses and may contain some.
        let (before, after) = text.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_whitespace().collect();
        Some(Self {
            name,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            foreground: fields.get(5)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// The resident set of a process and its high-water mark.
fn memory(process: &Path) -> Option<(u64, u64)> {
    let bytes = fs::read(process.join("status")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let bytes = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

/// Ids of other processes that run this program's file, without those that this one comes from.
pub fn strays() -> Vec<u32> {
    let Ok(own) = fs::read_link("/proc/self/exe") else { return Vec::new() };
    let mut ancestors = vec![std::process::id()];
    while let Some(stat) = ancestors.last().and_then(|id| Stat::read(Path::new(&format!("/proc/{id}"))))
        && stat.parent > 1
    {
        ancestors.push(stat.parent);
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let runs = |id: &u32| fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|file| file == own);
    ids.filter(|id| !ancestors.contains(id)).filter(runs).collect()
}

/// Returns whether a terminal sends its signals to this process, and to those that it started, too.
pub fn is_in_foreground() -> bool {
    Stat::read(Path::new("/proc/self")).is_some_and(|own| own.foreground == i64::from(own.group))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            let made = Self(tempfile::tempdir().expect("a folder"));
            made.add("self", "self", 1, 1, None);
            made
        }

        fn add(&self, id: &str, name: &str, parent: u32, start: u64, kibibytes: Option<(u64, u64)>) {
            let folder = self.0.path().join(id);
            fs::create_dir_all(&folder).expect("made");
            let stat = format!("{id} ({name}) S {parent} 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 {start} 99 1 0\n");
            fs::write(folder.join("stat"), stat).expect("written");
            let memory = kibibytes.map(|(now, peak)| format!("VmHWM:\t{peak:8} kB\nVmRSS:\t{now:8} kB\n"));
            fs::write(folder.join("status"), format!("Name:\t{name}\n{}", memory.unwrap_or_default()))
                .expect("written");
        }

        fn remove(&self, id: &str) {
            fs::remove_dir_all(self.0.path().join(id)).expect("removed");
        }
    }

    #[test]
    fn a_tree_is_the_process_and_its_descendants() {
        let proc = Proc::new();
        proc.add("10", "sh", 1, 5, Some((100, 120)));
        // A grandchild whose id is below those of its ancestors, with a name that looks like fields.
        proc.add("9", "a) R (1", 11, 7, Some((300, 400)));
        proc.add("11", "make", 10, 6, Some((200, 200)));
        proc.add("12", "other", 1, 6, Some((1 << 20, 1 << 20)));
        proc.add("13", "zombie", 10, 8, None);
        let mut tree = Tree::below(proc.0.path(), 10).expect("a tree");
        assert_eq!(tree.look(), Resident { processes: 3, bytes: 600 * 1024 });
        assert_eq!(tree.largest(), Some(&Largest { name: "a) R (1".into(), peak_bytes: 400 * 1024 }));

        // Its parent has ended, and init is its parent now.
        proc.remove("11");
        proc.add("9", "a) R (1", 1, 7, Some((310, 400)));
        assert_eq!(tree.look(), Resident { processes: 2, bytes: 410 * 1024 });

        // Another process has its id.
        proc.add("9", "new", 1, 50, Some((1 << 20, 1 << 20)));
        assert_eq!(tree.look(), Resident { processes: 1, bytes: 100 * 1024 });
        proc.remove("10");
        assert_eq!(tree.look(), Resident::default());
        assert_eq!(tree.largest().expect("the largest").peak_bytes, 400 * 1024);
    }

    #[test]
    fn without_proc_the_reason_is_given() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(Tree::below(folder.path(), 1).err().expect("no processes").to_string().contains("/proc"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory() {
        let mut tree = Tree::of(std::process::id()).expect("Linux");
        let seen = tree.look();
        let peak = tree.largest().expect("this process").peak_bytes;
        assert!(seen.processes >= 1 && seen.bytes > 1 << 20 && peak > 1 << 20, "{seen:?}");
    }
}
