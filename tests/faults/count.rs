//! The extent of the harness, so that a change of its tables does not shrink it unseen.

use crate::{files, fuzz::corpus, hub};

/// Some files of the corpora of connections are in order, so they do not count.
#[test]
fn sixty_bad_inputs_and_twenty_faults() {
    let files_of_others = ["config", "gguf", "records", "safetensors", "yaml"];
    let kept: usize = files_of_others.iter().map(|target| corpus(target).len()).sum();
    let bad_inputs = kept + files::PUTS.len() * files::READ.len();
    let faults = hub::broken().len() + hub::slow().len();
    println!("{bad_inputs} bad inputs and {faults} faults, less those in the tests of single commands");
    assert!(bad_inputs >= 60, "{bad_inputs} bad inputs");
    assert!(faults >= 20, "{faults} faults");
}
