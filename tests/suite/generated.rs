//! Parts of the guide that the program makes, each between two comments.

use std::{fs, path::Path};

/// Asserts that a chapter has `expected` between `<!-- name -->` and `<!-- /name -->`. With `UPDATE_GUIDE` set, writes it there.
pub fn assert_part(chapter: &str, name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide").join(chapter);
    let text = fs::read_to_string(&path).expect("a chapter");
    let place = |marker: &str| text.find(marker).unwrap_or_else(|| panic!("{chapter} has no {marker}"));
    let begin = format!("<!-- {name} -->\n");
    let inside = place(&begin) + begin.len()..place(&format!("<!-- /{name} -->"));
    if std::env::var_os("UPDATE_GUIDE").is_some() {
        let updated = [&text[..inside.start], expected, &text[inside.end..]].concat();
        fs::write(&path, updated).expect("written");
        return;
    }
    let update = "UPDATE_GUIDE=1 cargo test --test suite the_guide";
    assert_eq!(&text[inside], expected, "{chapter} is out of date: run {update}");
}
