//! The layout of `src`: imports between its folders point one way.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use candlepower_core::model::series::Architecture;

/// The folders and files directly below `src` and `src/core`, lowest first. Each may import those of the lines above it, and nothing of its
/// own line but itself.
const LEVELS: [&[&str]; 16] = [
    &["text", "files", "statistics"],
    &["progress", "git"],
    &["error", "output", "dialogue"],
    &["config", "names", "tls"],
    &["scenario", "device", "kernels"],
    &["record"],
    &["measure", "report", "load", "peer"],
    &["model"],
    &["generate", "step", "settings"],
    &["quality", "serve", "train"],
    &["workload", "verify"],
    &["runner", "doctor", "wrap"],
    &["duel"],
    &["bench", "recommend"],
    &["why"],
    &["command"],
];

/// Every Rust file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The text without comments and without the module of unit tests, which may use anything.
fn code(text: &str) -> String {
    let tests = ["#[cfg(test)]\nmod tests {", "#[cfg(all(test"].iter().filter_map(|start| text.find(start)).min();
    let code = &text[..tests.unwrap_or(text.len())];
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// First segments of the paths that start with `crate::`, in `use crate::{…}` too.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut starts = true;
        for (place, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                c if starts && !c.is_whitespace() => {
                    found.insert(word(&group[place..]));
                    starts = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn lower_modules_do_not_import_higher_ones() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let level = |room: &str| LEVELS.iter().position(|rooms| rooms.contains(&room));
    let mut wrong = Vec::new();
    for path in sources(&src) {
        let inside = path.strip_prefix(&src).expect("below src");
        let in_room = inside.strip_prefix("core").unwrap_or(inside);
        let room = in_room.iter().next().expect("a name").to_string_lossy().trim_end_matches(".rs").to_owned();
        // `lib.rs` re-exports, `core/mod.rs` declares, `core/build.rs` is a program, the program calls the command, and golden tests
        // are tests in a file of their own.
        let is_test = inside.file_stem().is_some_and(|name| name == "golden" || name == "tests");
        if ["lib", "bin", "build", "guide", "mod"].contains(&room.as_str()) || is_test {
            continue;
        }
        let own = level(&room).unwrap_or_else(|| panic!("src/{room} has no level: add it to LEVELS"));
        for imported in imports(&code(&fs::read_to_string(&path).expect("a source"))) {
            // Items of the crate's root, such as macros, have no level.
            if level(&imported).is_some_and(|other| imported != room && other >= own) {
                wrong.push(format!("src/{} imports {imported}, which is not below {room}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found() {
    let text = "use crate::{\n    record::{self, Limits},\n    error::nearest, model,\n};\nfn f() { crate::doctor::examine() }";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["doctor", "error", "model", "record"]);
    assert!(imports(&code("// crate::runner\n#[cfg(test)]\nmod tests {\n use crate::runner;\n}")).is_empty());
}

/// A patch of a script changes lines that a later commit may change too.
#[test]
fn the_patches_of_scripts_apply() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join("scripts")).expect("a folder") {
        let patch = entry.expect("an entry").path();
        if patch.extension().is_some_and(|extension| extension == "patch") {
            let git =
                Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(root).output().expect("git");
            assert!(git.status.success(), "{}: {}", patch.display(), String::from_utf8_lossy(&git.stderr));
        }
    }
}

/// The places in `src` and `benches` where a text is found, less unit tests.
fn places_of(texts: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places = Vec::new();
    for path in ["src", "benches"].iter().flat_map(|folder| sources(&root.join(folder))) {
        let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        let is_test = path.file_stem().is_some_and(|stem| stem == "golden" || stem == "tests");
        if is_test {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source");
        // Comments are removed, and with them what strings hold behind two slashes.
        for (number, line) in (1..).zip(code(&source).lines()) {
            if texts.iter().any(|text| line.contains(text)) {
                places.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    places
}

/// Only the files of a recipe in the chapter on contributing name an addition of its kind. All others find it by its table.
#[test]
fn additions_are_named_in_the_files_of_their_recipes() {
    let family = ["src/core/model/family.rs", "src/core/model/decoder/forward.rs", "src/core/model/gguf/mod.rs"];
    let stock = ["llama", "qwen3", "gemma3", "mixtral"].map(|name| format!("src/core/model/stock/{name}.rs"));
    let [llama, qwen3, gemma3, mixtral] = stock.each_ref().map(String::as_str);
    let quantised = "src/core/model/stock/quantised.rs";
    // The dense decoders of `moe_top_k` have this architecture.
    let family_of_twins = [&family[..], &["src/core/model/decoder/shape.rs", qwen3, quantised]].concat();
    let measure = ["src/core/record/measures.rs", "src/core/generate/summary.rs"];
    let key_of_sweep = ["src/workload/series/grid.rs", "src/workload/series/nested.rs"];
    let expected: [(&str, &[&str]); 8] = [
        ("\"long\"", &["src/core/scenario/generation.rs"]),
        ("\"LlamaForCausalLM\"", &[&family[..], &[llama, quantised]].concat()),
        ("\"Qwen3ForCausalLM\"", &family_of_twins),
        ("\"Gemma3ForCausalLM\"", &[family[0], family[2], gemma3, quantised]),
        ("\"MixtralForCausalLM\"", &[&family[..], &[mixtral, quantised]].concat()),
        ("waiting_share", &measure),
        ("save_every", &["src/train/config.rs", "src/train/training.rs"]),
        ("max_epochs", &key_of_sweep),
    ];
    for (name, files) in expected {
        assert_eq!(files_with(name), files.iter().map(|file| (*file).to_owned()).collect(), "{name}");
    }
    // The file of a backbone has its name and does not contain it.
    for architecture in Architecture::all() {
        let files = ["src/core/model/series/mod.rs", "src/core/model/series/registry.rs"].map(str::to_owned);
        assert_eq!(files_with(architecture.name()), files.into(), "{architecture}");
    }
}

/// The files in `src` and `benches` that have a text outside of comments and unit tests.
fn files_with(text: &str) -> BTreeSet<String> {
    let places = places_of(&[text]);
    places.iter().filter_map(|place| Some(place.split_once(':')?.0.to_owned())).collect()
}
