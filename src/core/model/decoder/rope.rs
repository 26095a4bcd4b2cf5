//! The frequencies of rotary position embeddings with their scalings, as transformers computes them.

use std::f64::consts::PI;

use crate::model::config::{Rope, RopeScaling};

/// The angle by which each pair of the elements of a head that are turned turns per position, and the factor of cosines and sines.
pub fn frequencies(rope: &Rope, rotary_dim: usize) -> (Vec<f32>, f32) {
    let half = rotary_dim / 2;
    let theta = rope.theta as f32;
    let plain = (0..half).map(|pair| 1.0 / theta.powf((2 * pair) as f32 / rotary_dim as f32));
    match rope.scaling {
        RopeScaling::None | RopeScaling::Other(_) => (plain.collect(), 1.0),
        RopeScaling::Factors(ref factors) => {
            (plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect(), 1.0)
        }
        RopeScaling::LongRope { ref short_factor, attention_factor, .. } => {
            let scaled = plain.zip(short_factor).map(|(frequency, factor)| frequency / factor);
            (scaled.collect(), attention_factor as f32)
        }
        RopeScaling::Linear { factor } => (plain.map(|frequency| frequency / factor as f32).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let scaled = plain.map(|frequency| {
                // 0 for low frequencies and 1 for high ones, by their turns over the original positions.
                let turns = original_max_position_embeddings as f64 * f64::from(frequency) / (2.0 * PI);
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                mix(frequency, factor, kept)
            });
            (scaled.collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
            attention_factor,
        } => {
            // The pair that makes this many turns over the original positions.
            let pair = |turns: f64| {
                let positions = original_max_position_embeddings as f64;
                rotary_dim as f64 * (positions / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut first, mut last) = (pair(beta_fast), pair(beta_slow));
            if truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            (first, last) = (first.max(0.0), last.min(rotary_dim as f64 - 1.0));
            if first == last {
                last += 0.001;
            }
            let scaled = plain.enumerate().map(|(pair, frequency)| {
                let kept = 1.0 - ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                mix(frequency, factor, kept)
            });
            (scaled.collect(), attention_factor as f32)
        }
    }
}

/// A frequency of which a share is kept and the rest is divided by `factor`.
fn mix(frequency: f32, factor: f64, kept: f64) -> f32 {
    (f64::from(frequency) * (kept + (1.0 - kept) / factor)) as f32
}
