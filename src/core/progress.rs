//! What the program does now, as lines on the terminal that standard error is. Elsewhere they are not drawn.
//!
//! Every such line belongs to one set, so that what `output` prints does not tear them.

use std::{
    fmt::Display,
    sync::LazyLock,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All lines.
static LINES: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The time after which a line is drawn again. A thread does so, which must not disturb what is measured.
const TICK: Duration = Duration::from_millis(500);

/// A line that names some work, its current step and the time since it began. It disappears when the value is dropped.
pub struct Live {
    line: ProgressBar,
    work: String,
}

/// Shows a line for some work.
pub fn live(work: impl Display) -> Live {
    let line = shown(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{wide_msg} {elapsed}") {
        line.set_style(style);
    }
    let work = crate::text::line(&work.to_string());
    line.set_message(work.clone());
    line.enable_steady_tick(TICK);
    Live { line, work }
}

impl Live {
    /// Names the current step of the work.
    pub fn step(&self, step: impl Display) {
        self.line.set_message(format!("{} · {}", self.work, crate::text::line(&step.to_string())));
    }

    /// Names a step of which `done` of `all` parts have ended since `began`, and the time that the others will take.
    pub fn part(&self, name: &str, (done, all): (usize, usize), began: Instant) {
        let left = match done {
            0 => String::new(),
            _ => {
                let left_s = began.elapsed().as_secs_f64() * (all - done) as f64 / done as f64;
                format!(", about {left_s:.0} s left")
            }
        };
        self.step(format_args!("{name} {} of {all}{left}", (done + 1).min(all)));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}

/// Adds a bar to the lines.
pub fn shown(bar: ProgressBar) -> ProgressBar {
    LINES.add(bar)
}

/// Runs something that prints, without the lines.
pub(crate) fn suspended<T>(run: impl FnOnce() -> T) -> T {
    LINES.suspend(run)
}
