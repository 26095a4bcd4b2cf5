//! Text from files and servers, made safe for the place that it is written to.
//!
//! Names in records, checkpoints and answers of servers may hold escape sequences, line breaks or the markup of a format.
//! Each function here makes them harmless for one format and leaves ordinary text as it is.

use std::fmt::Write;

/// For one line on a terminal: control characters and characters that change the direction of writing become escapes such
/// as `\u{1b}`.
pub fn line(text: &str) -> String {
    escaped(text, is_unsafe)
}

/// For a part of a line: as [`line()`], with at most so many characters.
pub fn short(text: &str, max_chars: usize) -> String {
    let text = line(text);
    match text.char_indices().nth(max_chars) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// For several lines on a terminal: as [`line()`], but line breaks and tabs stay.
pub fn lines(text: &str) -> String {
    escaped(text, |c| is_unsafe(c) && c != '\n' && c != '\t')
}

/// For JSON on a terminal and for YAML: the same characters as in [`lines()`] become JSON's escapes, which mean the same between
/// double quotes.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_unsafe(c) || c == '\n' || c == '\t' => out.push(c),
            c => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
        }
    }
    out
}

/// For a cell of a Markdown table: one line without links and HTML, which ends neither the cell nor the line.
pub fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in line(text).chars() {
        match c {
            '|' => out.push_str("\\|"),
            // The start of a link's target. A bracket alone is the mark of a note.
            '(' if out.ends_with(']') => out.push_str("\\("),
            '<' => out.push_str("&lt;"),
            c => out.push(c),
        }
    }
    out
}

/// For text and attributes of XML, SVG and HTML. Control characters, and those that change the direction of writing or that XML
/// does not allow, become U+FFFD. Line breaks and tabs stay.
pub fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if is_xml(c) && !is_unsafe(c) => out.push(c),
            _ => out.push(char::REPLACEMENT_CHARACTER),
        }
    }
    out
}

/// For text that a library escapes as XML itself: only the characters that XML does not allow are replaced.
pub fn xml_characters(text: &str) -> String {
    text.chars().map(|c| if is_xml(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// For a cell of a CSV file: one line, as [`line()`] shows it. Text that a spreadsheet would compute as a formula begins with an
/// apostrophe. Numbers stay.
pub fn csv(text: &str) -> String {
    let text = line(text);
    let is_formula = text.starts_with(['=', '+', '-', '@']) && text.parse::<f64>().is_err();
    if is_formula { format!("'{text}") } else { text }
}

/// For the value of a label in OpenMetrics, between its quotes. Control characters other than line breaks are escaped as in
/// [`line()`].
pub fn openmetrics(text: &str) -> String {
    let text = escaped(text, |c| is_unsafe(c) && c != '\n');
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A name as one segment of a relative URL.
pub fn url(name: &str) -> String {
    let segment = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(segment).collect()
}

/// For a word of a POSIX shell's command line: quoted where the shell would not take it as it is.
pub fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,.:/@".contains(c);
    // zsh replaces a word that begins with an equals sign.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => out.push(c),
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    out
}

/// Control characters, line separators, and the characters that reorder what is shown.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Returns whether XML 1.0 allows the character (its production `Char`).
fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_gets_text_that_can_not_leave_its_place() {
        type Function = fn(&str) -> String;
        for (function, text, safe) in [
            (line as Function, "\u{1b}[31mred\u{7}\nnext", "\\u{1b}[31mred\\u{7}\\nnext"),
            (line, "a\u{202e}b\u{9b}c", "a\\u{202e}b\\u{9b}c"),
            (line, "Ångström 5 µs ✓", "Ångström 5 µs ✓"),
            (lines, "one\ntwo\t\u{1b}]0;title\u{7}", "one\ntwo\t\\u{1b}]0;title\\u{7}"),
            (markdown, "a|b\n<img src=x>`c`[d](e)", "a\\|b\\n&lt;img src=x>`c`[d]\\(e)"),
            (markdown, "llama-3.2-1b/stock_bf16", "llama-3.2-1b/stock_bf16"),
            (xml, "<a b=\"c\">'&\u{1b}\u{0}\u{ffff}", "&lt;a b=&quot;c&quot;&gt;&#39;&amp;\u{fffd}\u{fffd}\u{fffd}"),
            (xml, "a\u{9b}31m\u{202e}\n\tb", "a\u{fffd}31m\u{fffd}\n\tb"),
            (xml_characters, "<\u{8}>", "<\u{fffd}>"),
            (csv, "=HYPERLINK(\"x\")", "'=HYPERLINK(\"x\")"),
            (csv, "+1+1", "'+1+1"),
            (csv, "@SUM(A1)", "'@SUM(A1)"),
            (csv, "\t=1+1\r\n\u{1b}[2J", "\\t=1+1\\r\\n\\u{1b}[2J"),
            (csv, "-1.5e-3", "-1.5e-3"),
            (csv, "medium/a/b", "medium/a/b"),
            (openmetrics, "a\"b\\c\nd", "a\\\"b\\\\c\\nd"),
            (openmetrics, "a\u{1b}[2J", "a\\\\u{1b}[2J"),
            (shell, "--model=path:./a-b_c@1", "--model=path:./a-b_c@1"),
            (shell, "", "''"),
            (shell, "it's $5; `ls` \"a\"", "'it'\\''s $5; `ls` \"a\"'"),
            (json, "{\"a\": \"\u{9b}2J\u{202e}\"}\n", "{\"a\": \"\\u009b2J\\u202e\"}\n"),
        ] {
            assert_eq!(function(text), safe, "{text:?}");
        }
    }
}
