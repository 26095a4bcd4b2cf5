//! Text and tokens: encoding, decoding token by token, and stop strings.

use anyhow::{Result, anyhow};
use tokenizers::Tokenizer;

use crate::error::one_line;

/// Tokens without complete text after which the text is given as it is. A character has at most four bytes.
const MAX_HELD_TOKENS: usize = 8;

/// Converts between text and tokens.
pub enum Codec {
    Tokenizer(Box<Tokenizer>, Pieces),
    /// For models without a tokenizer, whose weights are seeded: each word of a text is a token. `<7>` is token 7, and any
    /// other word a token by its hash. Generated tokens are written in the first form, so that an answer in a later prompt is
    /// the same tokens again.
    Words {
        vocab_size: usize,
    },
    /// For trained weights without a tokenizer: why they have none. Prompts are token ids, and generated tokens are written as `<7>`.
    Ids(String),
}

/// How the pieces of a vocabulary stand for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// Each character stands for a byte, as in GPT-2.
    Bytes,
    /// `▁` is a space, and `<0xE4>` a byte, as in SentencePiece.
    Spaces,
    /// Only the decoder knows.
    Other,
}

impl Codec {
    pub fn new(tokenizer: Option<Tokenizer>, without: Option<String>, vocab_size: usize) -> Self {
        let Some(tokenizer) = tokenizer else {
            return without.map_or(Self::Words { vocab_size }, Self::Ids);
        };
        let decoder =
            tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok()).unwrap_or_default();
        let pieces = if decoder.contains("\"ByteLevel\"") {
            Pieces::Bytes
        } else if ["\"ByteFallback\"", "\"Metaspace\"", "▁"].iter().any(|part| decoder.contains(part)) {
            Pieces::Spaces
        } else {
            Pieces::Other
        };
        Self::Tokenizer(Box::new(tokenizer), pieces)
    }

    /// The tokens of a text, with the special ones that the tokenizer adds to each if `special`.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self {
            Self::Tokenizer(tokenizer, _) => match tokenizer.encode_fast(text, special) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(error) => Err(anyhow!("the tokenizer failed: {}", one_line(&error))),
            },
            Self::Ids(why) => {
                Err(anyhow!("the model has no tokenizer for texts ({why}): give token ids as the prompt"))
            }
            Self::Words { vocab_size } => Ok(text.split_whitespace().map(|word| token(word, *vocab_size)).collect()),
        }
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, ids: &[u32]) -> String {
        match self {
            // It fails only for decoders that a tokenizer's file combines in ways that make no text.
            Self::Tokenizer(tokenizer, _) => tokenizer.decode(ids, true).unwrap_or_default(),
            Self::Words { .. } | Self::Ids(_) => ids.iter().map(|id| format!(" <{id}>")).collect(),
        }
    }

    /// The bytes of a token, wherever it stands. Special tokens have those of their names.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Self::Tokenizer(tokenizer, pieces) = self else { return self.decode(&[id]).into_bytes() };
        let alone = || tokenizer.decode(&[id], false).unwrap_or_default();
        let Some(piece) = tokenizer.id_to_token(id) else { return alone().into_bytes() };
        if tokenizer.get_added_vocabulary().simple_id_to_token(id).is_some() {
            return piece.into_bytes();
        }
        match pieces {
            Pieces::Bytes => piece.chars().flat_map(byte_of).collect(),
            Pieces::Spaces => {
                let byte = piece.strip_prefix("<0x").and_then(|piece| piece.strip_suffix('>'));
                match byte.and_then(|byte| u8::from_str_radix(byte, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => piece.replace('▁', " ").into_bytes(),
                }
            }
            Pieces::Other => alone().into_bytes(),
        }
    }

    /// A name of a token: its text, or its bytes if they are part of a character.
    pub fn token_name(&self, id: u32) -> String {
        String::from_utf8(self.token_bytes(id)).unwrap_or_else(|error| {
            let escaped: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        })
    }
}

/// The byte that a character of a byte-level vocabulary stands for. Printable bytes stand for themselves, and the others follow
/// from U+0100 on.
fn byte_of(c: char) -> Vec<u8> {
    let shifted = |byte: &u8| !matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u32::from(c) {
        code @ (33..=126 | 161..=172 | 174..=255) => vec![code as u8],
        code @ 256..=323 => (0..=255u8).filter(shifted).nth((code - 256) as usize).into_iter().collect(),
        _ => c.to_string().into_bytes(),
    }
}

/// The token of a word, in a vocabulary without words.
fn token(word: &str, vocab_size: usize) -> u32 {
    let number = word.strip_prefix('<').and_then(|word| word.strip_suffix('>')).and_then(|id| id.parse::<u32>().ok());
    // FNV-1a.
    let hash = || {
        word.bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    number.filter(|id| (*id as usize) < vocab_size).unwrap_or_else(|| (hash() % vocab_size as u64) as u32)
}

/// Decodes tokens one by one. The pieces together are the text, whether they are sent apart or not.
///
/// A token may be a part of a character, and decoders write some tokens differently at the start of a text. So the last
/// tokens are decoded twice, with and without the new ones, and the piece is the difference.
#[derive(Default)]
pub struct Decoding {
    /// The context, and the tokens whose text has not been given.
    ids: Vec<u32>,
    context: usize,
}

impl Decoding {
    /// The text that a token completes. It may be empty.
    pub fn push(&mut self, codec: &Codec, id: u32) -> String {
        self.ids.push(id);
        let piece = self.piece(codec);
        let is_whole = !piece.is_empty() && !piece.ends_with(char::REPLACEMENT_CHARACTER);
        if !is_whole && self.ids.len() - self.context < MAX_HELD_TOKENS {
            return String::new();
        }
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        piece
    }

    /// The text that is left when no more tokens come.
    pub fn finish(&mut self, codec: &Codec) -> String {
        let piece = self.piece(codec);
        self.ids.clear();
        self.context = 0;
        piece
    }

    fn piece(&self, codec: &Codec) -> String {
        if self.ids.len() == self.context {
            return String::new();
        }
        let before = codec.decode(&self.ids[..self.context]);
        let all = codec.decode(&self.ids);
        let start = (before.len()..=all.len()).find(|at| all.is_char_boundary(*at)).unwrap_or(all.len());
        all[start..].to_owned()
    }
}

/// Holds text back as long as it may be the beginning of a stop string.
pub struct Stops {
    strings: Vec<String>,
    held: String,
}

impl Stops {
    /// The strings must not be empty.
    pub fn new(strings: Vec<String>) -> Self {
        Self { strings, held: String::new() }
    }

    /// Adds text. Returns the text that precedes every stop string, and whether there was one.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |rest: &str| self.strings.iter().any(|stop| stop.starts_with(rest));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let kept = starts.filter(|at| *at >= from).find(|at| may_begin(&self.held[*at..])).unwrap_or(self.held.len());
        let rest = self.held.split_off(kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text that was held back when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for each byte, as byte-level tokenizers have for rare characters.
    fn bytes() -> Codec {
        // The printable stand-ins of GPT-2's byte-level tokenizers.
        let is_plain = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut shifted = 256u32..;
        let stand_in = |byte: u32| if is_plain(&byte) { byte } else { shifted.next().unwrap_or(0) };
        let chars: Vec<char> = (0..256).map(stand_in).filter_map(char::from_u32).collect();
        let vocab: serde_json::Map<_, _> =
            chars.iter().enumerate().map(|(id, c)| (c.to_string(), serde_json::json!(id))).collect();
        let file = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        Codec::new(Some(file.to_string().parse().expect("a tokenizer")), None, 256)
    }

    /// The pieces of a text whose tokens come one by one, and whether a stop string ended it.
    fn pieces(codec: &Codec, ids: &[u32], stops: &[&str]) -> (Vec<String>, bool) {
        let mut decoding = Decoding::default();
        let mut stops = Stops::new(stops.iter().map(ToString::to_string).collect());
        let mut pieces = Vec::new();
        for id in ids {
            let (text, stopped) = stops.push(&decoding.push(codec, *id));
            pieces.push(text);
            if stopped {
                return (pieces, true);
            }
        }
        let (text, stopped) = stops.push(&decoding.finish(codec));
        pieces.push(text);
        if !stopped {
            pieces.push(stops.finish());
        }
        (pieces, stopped)
    }

    #[test]
    fn characters_are_given_whole() {
        let codec = bytes();
        let text = "Ein Täßchen 🕯️ für 你";
        let ids = codec.encode(text, false).expect("ids");
        assert_eq!(ids.len(), text.len(), "one token for each byte");
        let (pieces, _) = pieces(&codec, &ids, &[]);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
        assert_eq!(pieces[5], "", "the first byte of ä");
        assert_eq!(pieces[6], "ä");
    }

    #[test]
    fn bytes_that_are_no_text_are_not_held_for_ever() {
        let codec = bytes();
        let ids = [vec![0xff; 20], b"end".iter().map(|byte| u32::from(*byte)).collect()].concat();
        let (found, _) = pieces(&codec, &ids, &[]);
        assert_eq!(found.concat(), format!("{}end", "\u{fffd}".repeat(20)));
        assert!(found.iter().position(|piece| !piece.is_empty()) < Some(MAX_HELD_TOKENS));
        // Each token has its own byte, and a name of its own.
        assert_eq!((0..256).flat_map(|id| codec.token_bytes(id)).collect::<Vec<_>>(), (0..=255).collect::<Vec<_>>());
        assert_eq!((codec.token_name(0xe4), codec.token_name(32)), ("bytes:\\xe4".into(), " ".into()));
        // An answer may end within a character.
        assert_eq!(pieces(&codec, &[b'a'.into(), 0xc3], &[]).0.concat(), "a\u{fffd}");
    }

    #[test]
    fn stop_strings_cut_wherever_tokens_end() {
        let codec = bytes();
        for (text, stops, expected) in [
            ("one two three", &["two"][..], "one "),
            ("one two three", &["three", "o t"], "one tw"),
            ("aaab", &["aab"], "a"),
            ("abab", &["abc"], "abab"),
            ("a für b", &["ür"], "a f"),
            ("a für b", &["🕯"], "a für b"),
            ("stop", &["stop"], ""),
            ("sto", &["stop"], "sto"),
        ] {
            let ids = codec.encode(text, false).expect("ids");
            let (found, stopped) = pieces(&codec, &ids, stops);
            assert_eq!((found.concat().as_str(), stopped), (expected, expected != text), "{text}, {stops:?}");
        }
        // Text that can't begin a stop string is not held back.
        let mut stops = Stops::new(vec!["two".into()]);
        assert_eq!(stops.push("one t"), ("one ".into(), false));
        assert_eq!(stops.push("ea"), ("tea".into(), false));
    }

    #[test]
    fn pieces_of_sentencepiece_keep_their_spaces() {
        let vocab = serde_json::json!({"<unk>": 0, "▁a": 1, "a": 2, "<0xE4>": 3});
        let file = serde_json::json!({
            "version": "1.0", "added_tokens": [],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab, "merges": []},
        });
        let codec = Codec::new(Some(file.to_string().parse().expect("a tokenizer")), None, 4);
        assert_eq!([1, 2, 3].map(|id| codec.token_bytes(id)), [b" a".to_vec(), b"a".to_vec(), vec![0xe4]]);
    }

    #[test]
    fn without_a_tokenizer_words_are_tokens() {
        let codec = Codec::new(None, None, 1000);
        let ids = codec.encode("A candle is <17>\n <17> <1000>", true).expect("ids");
        assert_eq!(ids.len(), 6);
        assert!(ids.iter().all(|id| *id < 1000) && ids[3..5] == [17, 17]);
        assert_eq!(codec.encode(&codec.decode(&ids), false).expect("ids"), ids);
        assert_eq!(pieces(&codec, &[5, 6, 7], &["<6>"]), (vec![" <5>".into(), " ".into()], true));
        // Texts for trained weights would be noise.
        let codec = Codec::new(None, Some("its folder has none".into()), 1000);
        let error = codec.encode("A candle", true).expect_err("a refusal").to_string();
        assert!(error.contains("its folder has none") && error.contains("token ids"), "{error}");
        assert_eq!(codec.decode(&[5, 6]), " <5> <6>");
    }
}
