//! The keys of a configuration as flags of a command.

use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::{
    config::{Config, Key},
    settings::GRID,
};

/// Selects the keys that a command takes.
pub trait Select {
    fn takes(key: &str) -> bool;
}

/// All keys.
pub struct All;

impl Select for All {
    fn takes(_: &str) -> bool {
        true
    }
}

/// The settings of a command that names its model itself.
pub struct OneModel;

impl Select for OneModel {
    fn takes(key: &str) -> bool {
        !["models", "tier", "skew", "out", "pairing"].contains(&key) && !GRID.contains(&key)
    }
}

/// The settings of a command that takes several models and batches.
pub struct Models;

impl Select for Models {
    fn takes(key: &str) -> bool {
        key == "models" || key == "batch" || OneModel::takes(key)
    }
}

/// Flags for the keys of the configuration `C` that `S` selects. Their values remain texts: `Layers` parses them, so that
/// all bad values are reported together.
pub struct Flags<C, S = All> {
    given: Vec<(&'static str, String)>,
    types: PhantomData<(C, S)>,
}

impl<C: Config, S: Select> Flags<C, S> {
    /// Keys and texts that were given.
    pub fn given(&self) -> &[(&'static str, String)] {
        &self.given
    }

    fn keys() -> impl Iterator<Item = &'static Key> {
        C::KEYS.iter().filter(|key| S::takes(key.name))
    }
}

impl<C: Config, S: Select> Args for Flags<C, S> {
    fn augment_args(command: Command) -> Command {
        let flag = |key: &'static Key| {
            // clap keeps names for as long as the process runs.
            let name: &str = key.name.replace('_', "-").leak();
            let aliases = key.aliases.iter().map(|alias| &*alias.replace('_', "-").leak());
            Arg::new(key.name).long(name).visible_aliases(aliases).help(key.about).allow_negative_numbers(true)
        };
        command.args(Self::keys().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: Config, S: Select> FromArgMatches for Flags<C, S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let text = |key: &Key| matches.get_one::<String>(key.name).cloned();
        let given = Self::keys().filter_map(|key| Some((key.name, text(key)?))).collect();
        Ok(Self { given, types: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How a comparison or a duel is printed.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Format {
    /// For a terminal
    Text,
    /// For a document
    Markdown,
    Json,
    /// For a comment on a pull request
    Github,
}
