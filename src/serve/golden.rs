//! Compares rendered conversations with those of Hugging Face transformers, in `fixtures/chat` or below `CANDLEPOWER_FIXTURES`.

use std::fs;

use serde::Deserialize;

use super::template::{Message, Template};
use crate::model::{ModelSpec, chat_template, golden::folders};

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn golden_conversations_are_rendered_byte_for_byte() {
    for folder in folders("chat") {
        let template = chat_template(&ModelSpec::Path(folder.clone())).expect("files").expect("a template");
        let template = Template::new(Some(template));
        assert!(matches!(template, Template::Jinja(_)), "{template:?}");
        let cases = fs::read(folder.join("golden.json")).expect("cases");
        let cases: Vec<Case> = serde_json::from_slice(&cases).expect("cases");
        for Case { messages, text, error } in cases {
            match template.render(&messages) {
                Ok((found, special)) => {
                    assert_eq!(Some(found), text, "{}: {messages:#?}", folder.display());
                    assert!(!special);
                }
                Err(found) => {
                    let expected = error.unwrap_or_else(|| panic!("{}: {found}: {messages:#?}", folder.display()));
                    assert!(found.contains(&expected), "{found} is not {expected}");
                }
            }
        }
    }
}

#[test]
fn a_template_can_neither_run_for_ever_nor_fail_at_the_start() {
    let render = |source: &str| {
        let template = crate::model::ChatTemplate { source: source.into(), ..Default::default() };
        Template::new(Some(template)).render(&[Message { role: "user".into(), content: "a".into() }])
    };
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(render(endless).expect_err("fuel").contains("refuses the messages"));
    assert!(render("{% if %}").expect_err("syntax").contains("chat template"));
    assert!(render("{{ strftime_now('%Q') }}").expect_err("format").contains("strftime_now"));
    assert_eq!(render("{{ strftime_now('%Y') | length }}").expect("a year").0, "4");
}
