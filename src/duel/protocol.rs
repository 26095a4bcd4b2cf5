//! The messages between a duel and its sides: one JSON object per line. A side answers each request with one reply, and
//! greets first.

use std::io::{self, BufRead};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{dialogue, record::Record};

/// Version of the protocol. It is raised when a message changes its meaning or is removed, not when a field is added.
pub const VERSION: u32 = 2;

/// Longest line that is read.
pub const LINE_MAX_BYTES: u64 = 64 << 20;

/// A request to a side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Name every benchmark. The reply is [`Reply::Benchmarks`].
    List {},
    /// Load what the benchmark needs and end the one before. The reply is [`Reply::Prepared`], or [`Reply::Record`] of a
    /// benchmark that failed.
    Prepare {
        /// The benchmark.
        id: String,
    },
    /// Take a sample of the prepared benchmark in turns. The reply is [`Reply::Turn`] as soon as the side is ready for its
    /// first turn.
    Sample {
        /// Iterations that are left out of the results, before the others.
        warm_up: usize,
        /// Iterations of the sample; 0 for a sample that only warms up.
        iterations: usize,
    },
    /// Go on with the sample. The reply is [`Reply::Turn`] when the turn ends, [`Reply::Sample`] when the sample does, or
    /// [`Reply::Record`] of a benchmark that failed.
    Turn {},
    /// End the benchmark. The reply is [`Reply::Record`] of all its samples.
    Finish {},
}

/// The answer of a side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The first line of a side, without a request.
    Hello {
        /// [`VERSION`] of the side.
        protocol: u32,
        /// Version of candlepower.
        candlepower: String,
    },
    /// Every benchmark, in the order of the bench targets.
    Benchmarks(Vec<Listed>),
    /// The benchmark is ready.
    Prepared {},
    /// The side waits for its next turn.
    Turn {},
    /// A sample.
    Sample(Sample),
    /// The result of a benchmark that ended or failed.
    Record(Box<Record>),
    /// The request could not be served.
    Error(String),
}

/// A benchmark of a side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Id of the benchmark.
    pub id: String,
    /// Bench target that has it. Benchmarks of different targets run in different processes.
    pub target: String,
}

/// Measurements of one sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Time of each iteration, those of the warm-up first.
    pub ns: Vec<u64>,
    /// Peak memory of each iteration; 0 where it is not counted.
    pub peak_bytes: Vec<u64>,
    /// Time to the first token of each iteration, where that is a part of it.
    #[serde(default)]
    pub ttft_ns: Vec<u64>,
    /// Digest of the output of the last iteration; `None` if outputs are not compared.
    #[serde(default)]
    pub output_digest: Option<String>,
}

/// Reads a message; `None` at the end of the input.
///
/// # Errors
/// When the line is not a message, is longer than 64 MiB, or breaks off.
pub fn read<M: DeserializeOwned>(input: &mut impl BufRead) -> Result<Option<M>> {
    dialogue::read_line(input, LINE_MAX_BYTES)?.map(|line| dialogue::parse(&line)).transpose()
}

/// Writes a message.
///
/// # Errors
/// When the reader has closed its end.
pub fn write(output: &mut impl io::Write, message: &impl Serialize) -> Result<()> {
    let line = dialogue::line_of(message)?;
    output.write_all(&line).and_then(|()| output.flush()).context("the other side of the duel has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_each() {
        let messages = [
            Request::List {},
            Request::Prepare { id: "short/llama-mini/stock-f32-cpu".into() },
            Request::Sample { warm_up: 1, iterations: 20 },
            Request::Turn {},
            Request::Finish {},
        ];
        let mut lines = Vec::new();
        for message in &messages {
            write(&mut lines, message).expect("written");
        }
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), messages.len());
        assert!(lines.starts_with(b"{\"list\":{}}\n{\"prepare\":{\"id\":"));
        let mut input = lines.as_slice();
        for message in messages {
            assert_eq!(read::<Request>(&mut input).expect("a message"), Some(message));
        }
        assert_eq!(read::<Request>(&mut input).expect("the end"), None);
    }

    #[test]
    fn a_field_of_a_later_version_is_ignored() {
        let line = br#"{"sample":{"ns":[5],"peak_bytes":[7],"energy_joules":1.5}}"#;
        let read = read::<Reply>(&mut [line.as_slice(), b"\n"].concat().as_slice()).expect("a message");
        assert_eq!(read, Some(Reply::Sample(Sample { ns: vec![5], peak_bytes: vec![7], ..Sample::default() })));
    }

    #[test]
    fn other_lines_are_quoted_harmlessly() {
        for (line, part) in [
            (&b"Running 3 tests\n"[..], "'Running 3 tests' is not a message"),
            (b"{\"hello\":{\"protocol\":1", "breaks off"),
            (b"\x1b[2J\xff\n", "'\\u{1b}[2J\u{fffd}' is not a message"),
            (b"{\"unknown\":{}}\n", "is not a message"),
        ] {
            let error = read::<Reply>(&mut &*line).expect_err(part).to_string();
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        }
    }
}
