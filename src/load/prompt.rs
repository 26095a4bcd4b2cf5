//! Texts of planned lengths. A prompt begins with the shared prefix, or with the text of each block of a trace, and goes on
//! with words that no other prompt has in this order, so that a server's cache helps only where the plan says so.

use std::{fmt, sync::Arc};

use super::{
    draw::{Draw, Purpose},
    plan::{Plan, Planned},
};

/// Words that are one token each, with the space before them, in the vocabularies of Llama, Qwen and Gemma.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];
/// Tokens of a block of a trace: those of Mooncake's traces.
const BLOCK_TOKENS: u32 = 512;

/// A tokenizer that counts tokens of a text.
#[derive(Clone)]
pub struct Tokens {
    name: String,
    count: Arc<dyn Fn(&str) -> usize + Send + Sync>,
    /// Tokens of each of [`WORDS`] after a space.
    costs: Arc<[usize]>,
}

impl Tokens {
    /// `name` identifies the tokenizer in results, for example by a hash of its file. `count` returns the number of tokens of
    /// a text, without special tokens.
    pub fn new(name: String, count: impl Fn(&str) -> usize + Send + Sync + 'static) -> Self {
        // A word at the start of a text may have another number of tokens.
        let before = count("a");
        let costs = WORDS.iter().map(|word| count(&format!("a {word}")).saturating_sub(before).max(1)).collect();
        Self { name, count: Arc::new(count), costs }
    }

    /// Identifies the tokenizer.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Number of tokens of a text.
    pub(crate) fn count(&self, text: &str) -> usize {
        (self.count)(text)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tokens").field(&self.name).finish()
    }
}

/// The text of the user's message in a planned request. With a tokenizer it has the planned number of tokens, without one as
/// many words.
pub fn text(plan: &Plan, planned: &Planned, tokens: Option<&Tokens>) -> String {
    let seed = plan.shape.seed;
    let mut words: Vec<String> = Vec::new();
    let mut left = planned.prompt_tokens;
    let mut add = |count: u32, purpose, number| {
        let mut draw = Draw::new(seed, purpose, number);
        let count = count.min(left);
        words.extend((0..count).map(|_| WORDS[draw.below(WORDS.len())].to_owned()));
        left -= count;
    };
    if planned.turn == 0 {
        add(plan.shape.shared_prefix_tokens, Purpose::SharedPrefix, 0);
    }
    for block in &planned.blocks {
        add(BLOCK_TOKENS, Purpose::Block, *block);
    }
    add(u32::MAX, Purpose::Prompt, planned.index);
    let Some(tokens) = tokens else { return words.join(" ") };

    let draw = Draw::new(seed, Purpose::Prompt, u64::MAX - planned.index);
    fit(words, planned.prompt_tokens as usize, tokens, draw)
}

/// Removes words from the end, or adds some, until the text has the wanted number of tokens.
fn fit(mut words: Vec<String>, wanted: usize, tokens: &Tokens, mut draw: Draw) -> String {
    const ROUNDS: usize = 16;
    for _ in 0..ROUNDS {
        let text = words.join(" ");
        let counted = tokens.count(&text);
        if counted == wanted || (counted > wanted && words.len() == 1) {
            return text;
        }
        if counted > wanted {
            let kept = (words.len() * wanted / counted).clamp(1, words.len() - 1);
            words.truncate(kept);
            continue;
        }
        let mut missing = wanted - counted;
        loop {
            let fitting: Vec<usize> = (0..WORDS.len()).filter(|word| tokens.costs[*word] <= missing).collect();
            if fitting.is_empty() {
                break;
            }
            let word = fitting[draw.below(fitting.len())];
            words.push(WORDS[word].to_owned());
            missing -= tokens.costs[word];
        }
        // No word is short enough: a digit after a word is a token of its own.
        words.iter_mut().rev().take(missing).for_each(|word| word.push('7'));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{
        arrivals::{Arrivals, Spacing},
        plan::{Shape, Turns},
    };

    fn plan(shared_prefix_tokens: u32) -> Plan {
        Plan::new(Shape {
            seed: 5,
            arrivals: Arrivals::Open { rate: 10.0, spacing: Spacing::Constant, ramp_from: 0.0, ramp_s: 0.0 },
            duration_s: Some(1.0),
            requests: None,
            prompt_tokens: "40".parse().expect("a length"),
            max_new_tokens: "4".parse().expect("a length"),
            shared_prefix_tokens,
            turns: Turns { count: 1, think_ms: 0.0 },
            trace: None,
        })
        .expect("a plan")
    }

    fn common_words(a: &str, b: &str) -> usize {
        a.split(' ').zip(b.split(' ')).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn prompts_share_the_prefix_and_nothing_else() {
        for shared in [0, 16] {
            let plan = plan(shared);
            let texts: Vec<String> =
                (0..10).map(|index| text(&plan, &plan.request(index).expect("a request"), None)).collect();
            for (i, a) in texts.iter().enumerate() {
                assert_eq!(a.split(' ').count(), 40);
                for b in &texts[..i] {
                    let common = common_words(a, b) as u32;
                    assert!((shared..shared + 4).contains(&common), "{common} common words");
                }
            }
        }
    }

    #[test]
    fn equal_blocks_have_equal_text() {
        let plan = plan(0);
        let with = |index, blocks: &[u64]| Planned {
            index,
            prompt_tokens: 2000,
            blocks: blocks.to_vec(),
            ..plan.request(0).expect("a request")
        };
        let [a, b] = [with(1, &[7, 8, 9]), with(2, &[7, 8, 10])].map(|planned| text(&plan, &planned, None));
        assert!((1024..1028).contains(&common_words(&a, &b)), "{}", common_words(&a, &b));
    }

    /// Words have two tokens or more for this tokenizer, and digits are their own.
    #[test]
    fn a_tokenizer_makes_lengths_exact() {
        let count = |text: &str| -> usize {
            let of_word = |word: &str| {
                let digits = word.bytes().filter(u8::is_ascii_digit).count();
                digits + (word.len() - digits).div_ceil(3).max(2)
            };
            text.split(' ').map(of_word).sum()
        };
        let tokens = Tokens::new("test".into(), count);
        let plan = plan(8);
        for (index, prompt_tokens) in [4, 5, 17, 40, 100, 1000, 2001].into_iter().enumerate() {
            let planned = Planned { index: index as u64, prompt_tokens, ..plan.request(0).expect("a request") };
            assert_eq!(count(&text(&plan, &planned, Some(&tokens))), prompt_tokens as usize);
        }
    }
}
