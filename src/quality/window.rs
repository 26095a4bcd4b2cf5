//! Sliding windows, as the documentation of transformers describes them for models of fixed length.

use anyhow::{Result, ensure};

/// Length and stride of windows, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    length: usize,
    stride: usize,
}

/// A position of the window. The targets are the tokens that no earlier window counted, less a token without one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Index of the first token.
    pub begin: usize,
    /// Index of the first target.
    pub first: usize,
    /// Index after the last token.
    pub end: usize,
    /// Tokens that no earlier window had.
    pub fresh: usize,
}

impl Window {
    /// Number of targets.
    pub fn targets(&self) -> usize {
        self.end.saturating_sub(self.first)
    }

    /// Tokens that a model computes for the targets: all but the last.
    pub fn inputs(&self) -> usize {
        (self.end - self.begin).saturating_sub(1)
    }
}

impl Sliding {
    /// Windows of `length` tokens that move by `stride`.
    ///
    /// # Errors
    /// When a window predicts nothing, or the stride is 0 or above the window.
    pub fn new(length: usize, stride: usize) -> Result<Self> {
        ensure!(
            length >= 2,
            "--seq-len={length}: a window needs at least 2 tokens, because the first is not predicted"
        );
        ensure!(
            (1..=length).contains(&stride),
            "--stride={stride}: use 1 to {length}, the window, so that every token is counted once"
        );
        Ok(Self { length, stride })
    }

    /// Tokens of a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Tokens by which the window moves.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The windows over a number of tokens. Each moves by the stride, and the last ends with the last token.
    pub fn over(&self, tokens: usize) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for begin in (0..tokens).step_by(self.stride) {
            let before = windows.last().map_or(0, |window| window.end);
            let end = tokens.min(begin.saturating_add(self.length));
            windows.push(Window { begin, first: before.max(begin + 1), end, fresh: end - before });
            if end == tokens {
                break;
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(length: usize, stride: usize, tokens: usize) -> Vec<(usize, usize, usize)> {
        let windows = Sliding::new(length, stride).expect("a stride").over(tokens);
        windows.iter().map(|window| (window.begin, window.first, window.end)).collect()
    }

    #[test]
    fn windows_are_those_of_the_documentation() {
        assert_eq!(over(4, 2, 9), [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 9)]);
        assert_eq!(over(5, 3, 12), [(0, 1, 5), (3, 5, 8), (6, 8, 11), (9, 11, 12)]);
        // Without overlap, the first token of each window is not predicted.
        assert_eq!(over(4, 4, 9), [(0, 1, 4), (4, 5, 8), (8, 9, 9)]);
        assert_eq!(over(4, 1, 4), [(0, 1, 4)]);
        assert_eq!(over(4, 3, 3), [(0, 1, 3)]);
    }

    #[test]
    fn overlapping_windows_count_every_token_but_the_first_once() {
        for (length, stride, tokens) in [(8, 1, 50), (8, 3, 50), (8, 7, 50), (2, 1, 9), (50, 49, 50), (7, 2, 1000)] {
            let windows = Sliding::new(length, stride).expect("a stride").over(tokens);
            let targets: Vec<usize> = windows.iter().flat_map(|window| window.first..window.end).collect();
            assert_eq!(targets, (1..tokens).collect::<Vec<_>>(), "{length} {stride}");
            assert!(windows.iter().all(|window| window.end - window.begin <= length && window.first > window.begin));
        }
    }

    #[test]
    fn strides_that_skip_tokens_are_refused() {
        for (length, stride, part) in [(8, 0, "--stride=0"), (8, 9, "--stride=9"), (1, 1, "--seq-len=1"), (0, 0, "=0")]
        {
            assert!(Sliding::new(length, stride).expect_err(part).to_string().contains(part));
        }
    }
}
