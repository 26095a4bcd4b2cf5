//! `candlepower watch`: a live view of a run.

use std::{
    io::{IsTerminal, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};

use super::{
    process::{self, Signals},
    report::records,
};
use crate::{
    report::watch::{Filter, Watched},
    settings::Settings,
};

#[derive(Args)]
pub struct Watch {
    /// Name of a run, its folder, or a file of records [default: the last run]
    run: Option<String>,
}

/// How long to wait for a key before the file is read again.
const INTERVAL: Duration = Duration::from_millis(250);

/// Lines that a page key moves the view by.
const PAGE: isize = 15;

impl Watch {
    pub fn run(self) -> Result<ExitCode> {
        ensure!(stdout().is_terminal(), "watch needs a terminal; `candlepower report` writes a run as files");
        let settings = Settings::load(&[])?;
        let path = records(self.run.as_deref(), &settings.out)?;
        let mut watched = Watched::new(&path);
        watched.refresh().with_context(|| format!("{} could not be read", path.display()))?;
        let signals = Signals::catch()?;
        let mut terminal = ratatui::try_init().context("the terminal could not be initialised")?;
        signals.watch_terminal(|| drop(ratatui::try_restore()))?;
        let ended = follow(&mut terminal, &mut watched, &signals);
        let restored = ratatui::try_restore();
        // A terminal that has closed can be neither drawn on nor restored.
        if let Some(signal) = signals.received() {
            return Ok(process::exit_code(signal));
        }
        restored.context("the terminal could not be restored")?;
        ended.map(|()| ExitCode::SUCCESS)
    }
}

/// Shows the run until a key or a signal ends the view.
fn follow(terminal: &mut DefaultTerminal, watched: &mut Watched, signals: &Signals) -> Result<()> {
    while signals.received().is_none() {
        watched.refresh().context("the records could not be read")?;
        terminal.draw(|frame| watched.draw(frame, Utc::now()))?;
        if !event::poll(INTERVAL)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        match key.code {
            KeyCode::Char('q') => return Ok(()),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
            KeyCode::Esc => watched.clear(),
            KeyCode::Down => watched.scroll(1),
            KeyCode::Up => watched.scroll(-1),
            KeyCode::PageDown => watched.scroll(PAGE),
            KeyCode::PageUp => watched.scroll(-PAGE),
            KeyCode::End => watched.follow(),
            KeyCode::Char(pressed) => {
                if let Some((_, filter, _)) = Filter::ALL.iter().find(|(key, ..)| *key == pressed) {
                    watched.turn(*filter);
                }
            }
            _ => {}
        }
    }
    Ok(())
}
