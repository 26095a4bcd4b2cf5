//! Compares rendered conversations with those of Hugging Face transformers, in `fixtures/chat` or below `CANDLEPOWER_FIXTURES`.

use std::{env, fs, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::jinja::Compiled;
use crate::model::{ChatTemplate, ModelSpec, chat_template};

#[derive(Deserialize)]
struct Case {
    messages: Value,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn golden_conversations_are_rendered_byte_for_byte() {
    let root = env::var_os("CANDLEPOWER_FIXTURES").map(PathBuf::from).filter(|root| root.join("chat").is_dir());
    let root = root.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures").into()).join("chat");
    let folders: Vec<PathBuf> =
        fs::read_dir(root).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert!(!folders.is_empty());
    for folder in folders {
        let template = chat_template(&ModelSpec::Path(folder.clone())).expect("files").expect("a template");
        let template = Compiled::new(template).expect("a template");
        let cases = fs::read(folder.join("golden.json")).expect("cases");
        let cases: Vec<Case> = serde_json::from_slice(&cases).expect("cases");
        for Case { messages, text, error } in cases {
            match template.render(&messages.to_string()) {
                Ok(found) => assert_eq!(Some(found), text, "{}: {messages}", folder.display()),
                Err(found) => {
                    let expected = error.unwrap_or_else(|| panic!("{}: {found}: {messages}", folder.display()));
                    assert!(found.contains(&expected), "{found} is not {expected}");
                }
            }
        }
    }
}

fn rendered(source: &str, messages: &str) -> Result<String, String> {
    let special_tokens = [("pad_token".to_owned(), "<pad>".to_owned())].into();
    let template = ChatTemplate { source: source.into(), special_tokens, ..Default::default() };
    Compiled::new(template)?.render(messages)
}

/// What transformers 5.24 renders.
#[test]
fn a_template_sees_what_transformers_gives_it() {
    let messages = r#"[{"role": "user", "name": "n", "content": "hi?"}, {"role": "assistant", "content": "b"}]"#;
    for (source, expected) in [
        ("{{ tools is none }}{{ documents is none }}{{ bos_token is defined }}{{ pad_token }}", "TrueTrueFalse<pad>"),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;name=n;content=hi?;"),
        ("{% for k, v in {'user': 'U', 'assistant': 'A'}.items() %}{{ v }}{% endfor %}", "UA"),
        ("{% for m in messages %}{% if loop.previtem is defined %}P{% endif %}{{ m.content }}{% endfor %}", "hi?Pb"),
        ("{%- generation -%} {{ messages[0].content }} {%- endgeneration %}", "hi?"),
        ("{% generation %}{% set x = 1 %}{% endgeneration %}{{ x is defined }}", "False"),
        ("{% raw %}{% generation %}{{ '%s' % 1 }}{% endraw %}{# {% generation %} #}", "{% generation %}{{ '%s' % 1 }}"),
        ("{% if true %}\r\na\r\n{% endif %}\rb", "a\nb"),
        ("{{ messages[0].content | tojson }}", r#""hi?""#),
        (
            r#"{{ {'b': [1, 2.5, none, true], 'a': {}, 'c': 'ä"\n\x07<'} | tojson }}"#,
            r#"{"b": [1, 2.5, null, true], "a": {}, "c": "ä\"\n\u0007<"}"#,
        ),
        ("{{ {'b': [1, {}], 'a': []} | tojson(indent=2) }}", "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": []\n}"),
        (
            "{{ {'b': 'ü🕯', 'a': 1e16} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
            r#"{"a":1e+16,"b":"\u00fc\ud83d\udd6f"}"#,
        ),
        ("{{ '[%s]' % messages[0].content }}", "[hi?]"),
        ("{{ '%s-%d' % (messages[0].content | upper, 7) ~ '!' }}", "HI?-7!"),
        (
            "{{ 'a,b,c'.rsplit(',', 1)[0] }}|{{ ' a  b c '.rsplit(none, 1) }}|{{ 'abc'.removeprefix('a') }}",
            "a,b|[' a  b', 'c']|bc",
        ),
        (
            "{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=')[2] }}{{ '-7'.zfill(4) }}{{ 'abc'.index('c') }}",
            "('a', '=', 'b=c')c-0072",
        ),
        (
            "[{{ 'ab'.center(5) }}][{{ 'abc'.center(6) }}][{{ 'a'.ljust(3) }}][{{ 'a'.rjust(3, '.') }}]",
            "[  ab ][ abc  ][a  ][..a]",
        ),
        ("{{ raise_exception is callable }}{{ messages is callable }}", "TrueFalse"),
    ] {
        assert_eq!(rendered(source, messages).as_deref(), Ok(expected), "{source}");
    }
    let thoughts = r#"[{"role": "assistant", "reasoning": "t", "content": ""}]"#;
    assert_eq!(
        rendered("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", thoughts).as_deref(),
        Ok("tt")
    );
}

#[test]
fn a_template_can_neither_run_for_ever_nor_fail_at_the_start() {
    let render = |source: &str| rendered(source, r#"[{"role": "user", "content": "a"}]"#);
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(render(endless).expect_err("fuel").contains("refuses the messages"));
    // What is unknown is found before the first chat.
    for source in ["{% if %}", "{{ 1 | nothing }}", "{{ nothing() }}", "{{ 'a'.nothing() }}", "{{ 1 is nothing }}"] {
        assert!(render(source).expect_err(source).starts_with("the model's chat template: "), "{source}");
    }
    for source in ["{{ 'a' * 99999999 }}", "{{ 'a'.center(99999999999) }}", "{{ strftime_now('%Q') }}"] {
        assert!(render(source).is_err(), "{source}");
    }
    assert_eq!(render("{{ strftime_now('%Y') | length }}").as_deref(), Ok("4"));
}
