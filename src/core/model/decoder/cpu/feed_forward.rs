//! The feed-forward of a layer: one expert, or a mixture whose router chooses experts for each token.

use std::{borrow::Cow, ops::Range};

use tracing::trace_span;

use super::{rank::room, spans::product_span};
use crate::{
    kernels::inference::{Activation, Element, Gate, Linear, Machine, Product, Rows, Then, combine, gated, products},
    model::decoder::routing::{ExpertLoad, Planted, Routes},
};

/// A dense feed-forward is that of one expert, without a router.
pub(super) struct FeedForward<E> {
    pub router: Option<Router<E>>,
    pub experts: Vec<Expert<E>>,
    /// The expert that computes every token, where a mixture has one.
    pub shared: Option<Shared<E>>,
    pub activation: Activation,
}

pub(super) struct Router<E> {
    pub linear: Linear<E>,
    pub top_k: usize,
    pub normalise: bool,
    /// Index among the layers that are mixtures.
    pub number: usize,
}

/// An expert whose output is weighted by the sigmoid of a gate.
pub(super) struct Shared<E> {
    /// One output.
    pub gate: Linear<E>,
    pub expert: Expert<E>,
}

pub(super) struct Expert<E> {
    pub gate: Linear<E>,
    pub up: Linear<E>,
    pub down: Linear<E>,
}

impl<E: Element> Expert<E> {
    /// The matrices.
    pub fn linears(&self) -> [&Linear<E>; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Bytes of the matrices.
    pub fn weight_bytes(&self) -> u64 {
        self.linears().map(|linear| linear.weights().bytes()).iter().sum()
    }
}

/// Results between operations, kept from layer to layer.
#[derive(Default)]
pub(super) struct Memory<E> {
    inner: Vec<E>,
    /// Logits of the router.
    logits: Vec<f32>,
    /// Inputs of the experts, sorted by expert, and their outputs.
    sorted: Vec<E>,
    parts: Vec<f32>,
}

impl<E: Element> FeedForward<E> {
    /// The experts, with the one that computes every token.
    pub fn all_experts(&self) -> impl Iterator<Item = &Expert<E>> {
        self.experts.iter().chain(self.shared.iter().map(|shared| &shared.expert))
    }

    /// These experts, with the one that computes every token.
    pub fn chosen_experts(&self, chosen: &[usize]) -> impl Iterator<Item = &Expert<E>> {
        let chosen = chosen.iter().map(|expert| &self.experts[*expert]);
        chosen.chain(self.shared.iter().map(|shared| &shared.expert))
    }

    /// Bytes of [`Memory`] for each token of width `hidden`.
    pub fn token_bytes(&self, hidden: usize) -> usize {
        let elements = |width: usize| Rows::<E>::stride_of(width) * size_of::<E>();
        let inner_of = |expert: &Expert<E>| elements(expert.gate.weights().outputs());
        let inner = self.experts.first().map_or(0, inner_of);
        match &self.router {
            None => inner,
            Some(Router { linear, top_k, .. }) => {
                let of_expert = inner + elements(hidden) + hidden * size_of::<f32>();
                let of_shared = |shared: &Shared<E>| inner_of(&shared.expert) + (hidden + 1) * size_of::<f32>();
                let shared = self.shared.as_ref().map_or(0, of_shared);
                linear.weights().outputs() * size_of::<f32>() + top_k * of_expert + shared
            }
        }
    }

    /// Bytes of a token's inputs in the form that the weights are multiplied with, if that is not as it is, of the larger of both
    /// halves.
    pub fn input_bytes(&self, machine: &Machine) -> usize {
        let per_token = self.router.as_ref().map_or(1, |router| router.top_k);
        let of_expert = |expert: &Expert<E>| {
            let [gate, down] = [&expert.gate, &expert.down].map(|linear| linear.weights().input_bytes(machine));
            gate.max(down)
        };
        let shared = self.shared.as_ref().map_or(0, |shared| of_expert(&shared.expert));
        per_token * self.experts.first().map_or(0, of_expert) + shared
    }

    /// Adds the feed-forward of `x` to `sum`. `planted` replaces the choices of a router, with the positions of each sequence.
    /// `load` counts the choices.
    pub fn add_to(
        &self,
        machine: &Machine,
        x: Rows<E>,
        planted: Option<(&Planted, &[Range<usize>])>,
        load: &mut ExpertLoad,
        memory: &mut Memory<E>,
        sum: &mut [f32],
    ) {
        let Some(router) = &self.router else {
            let inputs = vec![(&self.experts[0], x)];
            return run(machine, self.activation, inputs, &mut memory.inner, sum, Then::Add);
        };
        let routes = router.route(machine, x, planted, memory);
        load.count(router.number, &routes);
        self.mix(machine, &routes, x, memory, sum);
    }

    /// Adds the chosen experts and the shared one. Tokens are sorted by expert, so that each expert's weights are read once.
    pub fn mix(&self, machine: &Machine, routes: &Routes, x: Rows<E>, memory: &mut Memory<E>, sum: &mut [f32]) {
        let Self { experts, activation, shared, .. } = self;
        let Memory { inner, sorted, parts, logits } = memory;
        // The place of each token's input among the sorted ones, as the chosen experts are listed: by token.
        let mut ends = vec![0; experts.len()];
        routes.experts.iter().for_each(|expert| ends[*expert as usize] += 1);
        let counts = ends.clone();
        (1..ends.len()).for_each(|expert| ends[expert] += ends[expert - 1]);
        let mut next: Vec<usize> = ends.iter().zip(&counts).map(|(end, count)| end - count).collect();
        let hidden = sum.len() / x.count();
        let sorted = room(sorted, routes.experts.len() * x.stride());
        let chosen = routes.experts.len();
        let mut places = Vec::with_capacity(chosen);
        for (at, expert) in routes.experts.iter().enumerate() {
            let place = &mut next[*expert as usize];
            sorted[*place * x.stride()..][..x.stride()].copy_from_slice(x.row(at / routes.top_k));
            places.push(*place as u32);
            *place += 1;
        }
        let mut weights = Cow::Borrowed(routes.weights.as_slice());
        if let Some(Shared { gate, .. }) = shared {
            // One more expert of each token, whose outputs follow those of the others.
            let gates = room(logits, x.count());
            products(machine, vec![Product { x, layer: gate, out: gates, then: Then::Store }]);
            let weight_of = |logit: f32| E::round((1.0 + (-logit).exp()).recip());
            let of_token = |token: usize| token * routes.top_k..(token + 1) * routes.top_k;
            let with = |token: usize, of_shared: f32| {
                routes.weights[of_token(token)].iter().copied().chain([of_shared]).collect::<Vec<_>>()
            };
            weights = (gates.iter().enumerate()).flat_map(|(token, logit)| with(token, weight_of(*logit))).collect();
            places = (0..x.count())
                .flat_map(|token| places[of_token(token)].iter().copied().chain([(chosen + token) as u32]))
                .collect();
        }
        let busy = (experts.iter().zip(counts.iter().zip(&ends))).filter(|(_, (count, _))| **count > 0);
        let rows = |count: usize, end: usize| Rows::new(&sorted[(end - count) * x.stride()..], count, x.stride());
        let inputs = busy.map(|(expert, (count, end))| (expert, rows(*count, *end)));
        let inputs: Vec<_> = inputs.chain(shared.as_ref().map(|shared| (&shared.expert, x))).collect();
        let parts = room(parts, places.len() * hidden);
        run(machine, *activation, inputs, inner, parts, Then::Store);
        let _combine = trace_span!("combine").entered();
        combine::<E>(machine, parts, (&places, &weights), hidden, sum);
    }
}

impl<E: Element> Router<E> {
    /// Chooses the experts of each row of `x`. Planted routes depend on the positions of each sequence.
    pub fn route(
        &self,
        machine: &Machine,
        x: Rows<E>,
        planted: Option<(&Planted, &[Range<usize>])>,
        memory: &mut Memory<E>,
    ) -> Routes {
        let experts = self.linear.weights().outputs();
        let logits = room(&mut memory.logits, x.count() * experts);
        let linear = &self.linear;
        let _router = product_span!("router", machine, || [(linear, x.count())].into_iter()).entered();
        products(machine, vec![Product { x, layer: linear, out: logits, then: Then::Store }]);
        match planted {
            None => Routes::choose(logits, experts, self.top_k, self.normalise),
            Some((planted, positions)) => {
                let logits = positions.iter().flat_map(|own| planted.logits(self.number, own.start, own.len()));
                let logits: Vec<f32> = logits.collect();
                Routes::choose(&logits, experts, self.top_k, self.normalise)
            }
        }
    }
}

/// Computes experts, each with its own inputs. Their outputs follow each other in `out`.
fn run<E: Element>(
    machine: &Machine,
    activation: Activation,
    inputs: Vec<(&Expert<E>, Rows<E>)>,
    inner: &mut Vec<E>,
    mut out: &mut [f32],
    then: Then,
) {
    let stride = |expert: &Expert<E>| Rows::<E>::stride_of(expert.gate.weights().outputs());
    let mut room = room(inner, inputs.iter().map(|(expert, x)| x.count() * stride(expert)).sum());
    let (mut gates, mut parts) = (Vec::new(), Vec::new());
    for (expert, x) in &inputs {
        let (own, rest) = room.split_at_mut(x.count() * stride(expert));
        gates.push((*expert, *x, own));
        room = rest;
        let (own, rest) = out.split_at_mut(x.count() * expert.down.weights().outputs());
        parts.push(own);
        out = rest;
    }
    let first = gates.iter_mut().map(|(expert, x, out)| Gate { x: *x, gate: &expert.gate, up: &expert.up, out });
    let first = first.collect();
    let matrices = || inputs.iter().flat_map(|(expert, x)| [(&expert.gate, x.count()), (&expert.up, x.count())]);
    product_span!("gate/up", machine, matrices).in_scope(|| gated(machine, activation, first));
    let second = gates.iter().zip(parts).map(|((expert, x, inner), out)| Product {
        x: Rows::new(inner, x.count(), stride(expert)),
        layer: &expert.down,
        out,
        then,
    });
    let second = second.collect();
    let matrices = || inputs.iter().map(|(expert, x)| (&expert.down, x.count()));
    product_span!("down", machine, matrices).in_scope(|| products(machine, second));
}
