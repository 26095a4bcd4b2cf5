//! The table of backbones.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::{SequenceBackbone, Sizes};

/// A backbone that can be built by its name.
struct Row {
    name: &'static str,
    /// Other names that are read.
    aliases: &'static [&'static str],
    /// True if it has attention heads.
    attends: bool,
    /// True if it has RoPE.
    rotates: bool,
    /// True if it has dilated convolutions.
    dilates: bool,
    /// Sizes where nothing else is configured. `features` is set by [`Architecture::sizes`].
    sizes: fn() -> Sizes,
    build: fn(&Sizes, VarBuilder) -> Result<Box<dyn SequenceBackbone>>,
    /// The computation of a block, in Markdown.
    block: &'static str,
}

static TABLE: &[Row] = &[
    Row {
        name: "hybrid_transformer",
        aliases: &["temporal_transformer"],
        attends: true,
        rotates: true,
        dilates: true,
        sizes: || Sizes { depth: 16, dilations: vec![1, 2, 4, 8, 16, 32], ..usual() },
        build: super::hybrid_transformer::build,
        block: "`x = LN(x + attention(x))`, `x += FF(LN(x))`, `x = LN(x + conv(x))`",
    },
    Row {
        name: "omni_mixture",
        aliases: &["omni", "omni_backbone"],
        attends: true,
        rotates: false,
        dilates: true,
        sizes: || Sizes {
            dim: 768,
            depth: 24,
            heads: 12,
            conv_kernel: 7,
            dilations: vec![1, 2, 4, 8, 16, 32, 64],
            ..usual()
        },
        build: super::omni_mixture::build,
        block: "`x = LN(x + MHA(x))`, `x += FF(LN(x))` (twice as wide), `x = LN(x + mixer(x))`, `x = LN(x + conv(x))`, and \
                every `cross_every` blocks `x = LN(x + MHA(x, c, c))` with a coarse stream `c`",
    },
    Row {
        name: "state_space",
        aliases: &["ssm", "s4"],
        attends: false,
        rotates: false,
        dilates: false,
        sizes: usual,
        build: super::state_space::build,
        block: "`x += W(sigmoid(g)·tanh(conv(s)))`, `x += FF(LN(x))`",
    },
];

/// Sizes of which a row names those that differ.
fn usual() -> Sizes {
    Sizes {
        features: 0,
        dim: 512,
        depth: 12,
        heads: 8,
        ff_mult: 4,
        state_dim: 256,
        state_kernel: 16,
        conv_kernel: 5,
        dilations: vec![1],
        coarse_factor: 4,
        cross_every: 2,
        max_seq_len: 4096,
    }
}

/// Heads where an architecture's own number does not divide the width.
const FALLBACK_HEADS: usize = 8;

/// A row of the table of backbones. It is read from and written as its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub struct Architecture(usize);

impl Architecture {
    /// All backbones, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TABLE.len()).map(Self)
    }

    fn row(self) -> &'static Row {
        &TABLE[self.0]
    }

    /// Its name in ids and configurations.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Other names that are read.
    pub fn aliases(self) -> &'static [&'static str] {
        self.row().aliases
    }

    /// The table of all backbones in the guide, in Markdown.
    pub fn documentation() -> String {
        let line = |row: &Row| {
            let aliases: Vec<_> = row.aliases.iter().map(|alias| format!("`{alias}`")).collect();
            format!("| `{}` | {} | {} |\n", row.name, aliases.join(", "), row.block)
        };
        let lines: String = TABLE.iter().map(line).collect();
        format!("| name | also | block |\n|---|---|---|\n{lines}")
    }

    /// Its default sizes, for a series of `features`.
    pub fn sizes(self, features: usize) -> Sizes {
        Sizes { features, ..(self.row().sizes)() }
    }

    /// Its default number of heads at a width: its own number where that divides `dim`, otherwise 8.
    pub fn heads(self, dim: usize) -> usize {
        let own = (self.row().sizes)().heads;
        if dim.is_multiple_of(own) { own } else { FALLBACK_HEADS }
    }

    /// Returns whether it has attention heads.
    pub fn attends(self) -> bool {
        self.row().attends
    }

    /// Returns whether it has dilated convolutions.
    pub fn dilates(self) -> bool {
        self.row().dilates
    }

    /// Returns whether it has RoPE.
    pub(super) fn rotates(self) -> bool {
        self.row().rotates
    }

    /// Builds the backbone from weights, or from their initial values if `weights` makes variables.
    ///
    /// # Errors
    /// When the sizes do not go together, or a tensor is missing.
    pub(crate) fn build(self, sizes: &Sizes, weights: VarBuilder) -> Result<Box<dyn SequenceBackbone>> {
        sizes.check(self)?;
        (self.row().build)(sizes, weights)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_named = |row: &Row| [row.name].iter().chain(row.aliases).any(|name| name.eq_ignore_ascii_case(text));
        if let Some(found) = TABLE.iter().position(is_named) {
            return Ok(Self(found));
        }
        let names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        match crate::error::nearest(text, &names) {
            Some(near) => bail!("unknown architecture '{text}': did you mean {near}?"),
            None => bail!("unknown architecture '{text}': the architectures are {}", names.join(", ")),
        }
    }
}

impl TryFrom<String> for Architecture {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Architecture> for &'static str {
    fn from(architecture: Architecture) -> Self {
        architecture.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_are_read_and_near_misses_named() {
        for architecture in Architecture::all() {
            for name in std::iter::once(&architecture.name()).chain(architecture.row().aliases) {
                assert_eq!(name.parse::<Architecture>().expect("a name"), architecture);
                let json = serde_json::to_string(name).expect("JSON");
                assert_eq!(serde_json::from_str::<Architecture>(&json).expect("a name"), architecture);
            }
        }
        assert_eq!("Omni".parse::<Architecture>().expect("a name").name(), "omni_mixture");
        let message = |text: &str| text.parse::<Architecture>().expect_err(text).to_string();
        assert!(message("state-space").contains("did you mean state_space?"));
        assert!(message("lstm").contains("hybrid_transformer, omni_mixture, state_space"));
    }
}
