//! Server-sent events, parsed as the bytes arrive: lines that end in LF, CRLF or CR, comments, and characters that a write
//! splits.

/// Longest event. A server that sends no end of an event would otherwise fill the memory.
const EVENT_MAX_BYTES: usize = 16 << 20;

/// An event that a parser found.
#[derive(Debug, PartialEq)]
pub enum Item {
    /// An event with its name, empty if it has none, and its data.
    Event {
        /// The field `event`.
        name: String,
        /// The fields `data`, joined by line breaks.
        data: String,
    },
    /// A line that begins with a colon.
    Comment,
    /// The event is not UTF-8.
    NotText,
    /// The event is longer than is read.
    TooLong,
}

/// An incremental parser.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was CR, so that LF belongs to it.
    after_return: bool,
    /// A line ended in CR.
    pub saw_return: bool,
    /// Bytes ended inside a character.
    pub saw_split_character: bool,
}

impl Parser {
    /// Takes bytes as they arrived, and hands out what is complete.
    pub fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Item)) {
        for &byte in bytes {
            let follows_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => {
                    self.saw_return |= byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    self.end_line(&line, &mut found);
                    // The buffer is used again.
                    self.line = line;
                    self.line.clear();
                }
                byte if self.line.len() + self.data.len() < EVENT_MAX_BYTES => self.line.push(byte),
                _ => {
                    found(Item::TooLong);
                    return;
                }
            }
        }
        let tail = &self.line[self.line.len().saturating_sub(4)..];
        // The last character begins at the last byte that is not a continuation.
        let start = tail.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
        self.saw_split_character |= std::str::from_utf8(&tail[start..]).is_err_and(|error| error.error_len().is_none());
    }

    /// Takes the end of the stream. The standard drops an unfinished event, but `[DONE]` without an empty line is common.
    pub fn end(&mut self, mut found: impl FnMut(Item)) {
        let line = std::mem::take(&mut self.line);
        self.end_line(&line, &mut found);
        if self.data == b"[DONE]" {
            self.end_event(&mut found);
        }
    }

    fn end_line(&mut self, line: &[u8], found: &mut impl FnMut(Item)) {
        if line.is_empty() {
            self.end_event(found);
            return;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(0) => {
                found(Item::Comment);
                return;
            }
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field.strip_prefix(b"\xef\xbb\xbf").unwrap_or(field) {
            b"event" => self.name = value.to_vec(),
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            // `id` and `retry` are for clients that reconnect. Other fields are ignored by the standard.
            _ => {}
        }
    }

    fn end_event(&mut self, found: &mut impl FnMut(Item)) {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        if std::mem::take(&mut self.has_data) {
            found(match (String::from_utf8(name), String::from_utf8(data)) {
                (Ok(name), Ok(data)) => Item::Event { name, data },
                _ => Item::NotText,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parts: &[&[u8]]) -> (Vec<Item>, Parser) {
        let (mut parser, mut items) = (Parser::default(), Vec::new());
        parts.iter().for_each(|part| parser.feed(part, |item| items.push(item)));
        parser.end(|item| items.push(item));
        (items, parser)
    }

    fn event(data: &str) -> Item {
        Item::Event { name: String::new(), data: data.into() }
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let text = "\u{feff}data: größe ✓\r\n\r\n: keep-alive\n\nevent: error\ndata: a\r\ndata: b\rid: 7\r\rdata:c\n\ndata\n\nnoise\n\n";
        let expected = [
            event("größe ✓"),
            Item::Comment,
            Item::Event { name: "error".into(), data: "a\nb".into() },
            event("c"),
            event(""),
        ];
        let bytes = text.as_bytes();
        for size in [1, 2, 3, 5, 7, bytes.len()] {
            let (items, parser) = parse(&bytes.chunks(size).collect::<Vec<_>>());
            assert_eq!(items, expected, "in parts of {size}");
            assert!(parser.saw_return);
            let is_split = (size..bytes.len()).step_by(size).any(|at| !text.is_char_boundary(at));
            assert_eq!(parser.saw_split_character, is_split, "in parts of {size}");
        }
    }

    #[test]
    fn an_unfinished_event_is_dropped_unless_it_is_the_end() {
        assert_eq!(parse(&[b"data: one\n\ndata: tw"]).0, [event("one")]);
        assert_eq!(parse(&[b"data: one\n\ndata: [DONE]"]).0, [event("one"), event("[DONE]")]);
    }

    #[test]
    fn what_is_no_text_or_has_no_end_is_named() {
        assert_eq!(parse(&[b"data: \xff\xfe\n\n"]).0, [Item::NotText]);
        let longest = vec![b'x'; EVENT_MAX_BYTES];
        assert_eq!(parse(&[&longest]).0, []);
        assert_eq!(parse(&[&longest, b"x"]).0[0], Item::TooLong);
    }

    #[test]
    fn peculiarities_are_seen_where_they_are() {
        for (parts, saw_return, saw_split_character) in [
            (&[&b"data: @\xe2\x9c\x93"[..], b"\n\n"][..], false, false),
            (&[b"data: \xe2\x9c", b"\x93\n\n"], false, true),
            (&[b"data: a\r\n", b"\r\n"], true, false),
        ] {
            let (items, parser) = parse(parts);
            assert_eq!((items.len(), parser.saw_return), (1, saw_return), "{parts:?}");
            assert_eq!(parser.saw_split_character, saw_split_character, "{parts:?}");
        }
    }
}
