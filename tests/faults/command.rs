//! The command in a folder, without the variables of the process that tests it.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longest run of a command.
pub const LONGEST: Duration = Duration::from_secs(180);

/// The command in a folder.
pub fn candlepower(folder: &Path) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_candlepower")), folder)
}

/// The command in a folder, started by a shell after `before`, such as `ulimit -v 1000000`.
pub fn limited(folder: &Path, before: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_candlepower");
    command.args(["-c", &format!("{before} && exec \"$0\" \"$@\""), program]).args(arguments);
    clean(command, folder)
}

fn clean(mut command: Command, folder: &Path) -> Command {
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CANDLEPOWER_") {
            command.env_remove(key);
        }
    }
    for key in ["CARGO", "CARGO_TARGET_DIR", "CRITERION_HOME", "RUST_BACKTRACE", "RAYON_NUM_THREADS"] {
        command.env_remove(key);
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Waits for a process. One that does not end is killed, and the test fails. So it does if the output has the text of a
/// panic.
pub fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    ended(child)
}

/// As [`output`], for a process that was started.
pub fn ended(child: Child) -> Output {
    let id = child.id();
    let (done, waits) = std::sync::mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if waits.recv_timeout(LONGEST).is_err() {
            let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            panic!("process {id} did not end");
        }
    });
    let output = child.wait_with_output().expect("output");
    let _ = done.send(());
    watch.join().expect("it ended in time");
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(stream);
        for part in ["panicked", "panic at", "RUST_BACKTRACE", "stack backtrace", "called `", "memory allocation of"] {
            assert!(!text.contains(part), "{text}");
        }
    }
    output
}

/// Expects that each command of the help text is the first argument of one of `tried`, or one of `others`.
pub fn all_are_tried(tried: &[&[&str]], others: &[&str]) {
    let help = output(candlepower(Path::new(".")).arg("--help"));
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    for command in commands.filter_map(|line| line.split_whitespace().next()) {
        let is_tried = tried.iter().any(|arguments| arguments[0] == command);
        assert!(is_tried || others.contains(&command), "{command} is not tried");
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the command and expects success. Returns its standard output.
pub fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = output(candlepower(folder).args(arguments));
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs the command and expects it to refuse its input: exit code 2 and one line, without control characters.
pub fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = output(candlepower(folder).args(arguments));
    is_refused(&output, &format!("{arguments:?}"))
}

/// Expects exit code 2 and one line, which is returned.
pub fn is_refused(output: &Output, about: &str) -> String {
    let error = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{about}: {error}");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{about}: {error}");
    assert!(!error.trim_end().contains(char::is_control), "{about}: {error:?}");
    error
}

/// Waits until a condition holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONGEST, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes that another one started.
#[cfg(target_os = "linux")]
pub fn children_of(id: u32) -> Vec<u32> {
    let parent_of = |id: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let ids = fs::read_dir("/proc").expect("processes").flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|child| parent_of(*child) == Some(id)).collect()
}

/// The process that another one started: the one that measures, where a guard started it.
#[cfg(target_os = "linux")]
pub fn child_of(id: u32) -> u32 {
    *children_of(id).first().expect("a process")
}

/// Runs a command in the run `r`. Once its guard has a note, which tells that a benchmark is prepared or runs, the process that
/// measures gets a signal. It stands for a failed allocation, which aborts the process.
#[cfg(target_os = "linux")]
pub fn aborted_once(folder: &Path, arguments: &[&str]) -> Output {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = candlepower(folder);
    command.args(arguments).env("CANDLEPOWER_RUN", "r").env("TMPDIR", temporary.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let is_noted = |name: &String| temporary.path().join(name).join("note.json").is_file();
    wait_for("a note", || names(temporary.path()).iter().any(is_noted));
    send("-ABRT", child_of(child.id()));
    ended(child)
}

/// Waits until a process has ended, which may not be a child of this one.
#[cfg(target_os = "linux")]
pub fn wait_for_end_of(id: u32) {
    let state = || fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    wait_for("its end", || state().is_empty() || state().contains(") Z"));
}

/// Sends a signal such as `-TERM` to a process.
#[cfg(target_os = "linux")]
pub fn send(signal: &str, id: u32) {
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().expect("kill").success());
}

/// Names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
