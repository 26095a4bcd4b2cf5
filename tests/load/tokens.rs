//! Counts of tokens and the time per token, with several tokens in an event.

use std::{thread, time::Duration};

use candlepower::load::Tokens;

use crate::{
    a_run,
    mock::{answer, serve},
    report,
};

/// Events 20 ms apart with 1, 4 and 16 tokens each, counted by the server's usage and by our tokenizer.
#[test]
fn counts_are_exact_and_tpot_is_true_with_several_tokens_per_event() {
    thread::scope(|scope| {
        for per_event in [1, 4, 16] {
            for own in [false, true] {
                scope.spawn(move || check(per_event, own));
            }
        }
    });
}

fn check(per_event: u64, own: bool) {
    let url = serve(move |request, stream| answer(request, stream, 64, per_event, Duration::from_millis(20)));
    let mut run = a_run(&url, 10.0, 0.5);
    let count = |text: &str| text.split_whitespace().count();
    run.tokens = own.then(|| Tokens::new("words".into(), count));
    let report = report(&run);
    let tokens = &report.tally.tokens;
    assert_eq!((tokens.usage, tokens.chunks), (5 * 64, 5 * 64 / per_event), "{}", report.text());
    assert_eq!(tokens.own, if own { 5 * 64 } else { 0 });
    assert_eq!((tokens.usage_differs_from_own, tokens.prompt), (0, 5 * 16));
    assert_eq!(report.tally.all.itl.count(), 5 * (64 - per_event));
    // The sleeps of the server end late, so the truth is what it measured: the gap between events.
    let events = (64 / per_event - 1) as f64;
    let gap_ms = report.summary.all.chunk_gap.mean_ms.expect("gaps");
    let truth_ms = gap_ms * events / (64 - per_event) as f64;
    let tpot_ms = report.summary.all.tpot.mean_ms.expect("a time");
    assert!((tpot_ms / truth_ms - 1.0).abs() < 0.02, "{tpot_ms} ms, not {truth_ms} ms");
    assert!((20.0..30.0).contains(&gap_ms), "{gap_ms}");
}
